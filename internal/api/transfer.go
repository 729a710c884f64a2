package api

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/opencode"
	"github.com/alkdev/hub/internal/store"
)

// source is what sessions.source says of an opencode export.
const source = "opencode"

// A batch of an import or export ends with whichever comes first: memory stays bounded by it and by the largest message.
const (
	batchMessages = 200
	batchParts    = 2000
	batchBytes    = 4 << 20
)

// ImportSession implements the contract's operation. The file is read twice: once as it arrives, checking it whole while it
// is put aside, so that a broken file costs no transaction and a slow client holds none; then from where it was put.
func (s *Server) ImportSession(ctx context.Context, r api.ImportSessionRequestObject) (api.ImportSessionResponseObject, error) {
	file := &spool{dir: s.TempDir}
	defer file.Close()
	outline, err := opencode.Scan(io.TeeReader(requestBody(ctx).Body, file))
	if err != nil {
		return nil, err
	}
	done, err := s.beginTransfer(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	var result api.SessionImport
	err = retrying(func() error {
		result, err = s.importSession(ctx, r.Params.ProjectId, outline, file)
		return err
	})
	if err != nil {
		return nil, err
	}
	if result.Result == api.SessionImportResultCreated {
		return api.ImportSession201JSONResponse{Body: result, Headers: api.ImportSession201ResponseHeaders{Location: sessionPath(result.Id)}}, nil
	}
	return api.ImportSession200JSONResponse(result), nil
}

// importSession stores the file in one transaction.
func (s *Server) importSession(ctx context.Context, project uuid.UUID, outline *opencode.Session, file *spool) (api.SessionImport, error) {
	text, err := file.Reader()
	if err != nil {
		return api.SessionImport{}, err
	}
	in := newImporter(project, outline)
	if err := s.store.Tx(ctx, store.ReadCommitted, func(q *db.Queries) error { return in.run(ctx, q, text) }); err != nil {
		return api.SessionImport{}, s.pointAt(ctx, err, in)
	}
	return in.result, nil
}

// importer gathers messages into batches and counts what becomes of them.
type importer struct {
	db       *db.Queries
	outline  *opencode.Session
	project  uuid.UUID
	result   api.SessionImport
	created  bool // the session is new, so there is nothing to compare with
	born     map[uuid.UUID]bool
	seen     []string // the source ids of all messages so far
	messages db.ImportMessagesParams
	parts    db.ImportPartsParams
	bytes    int
}

func newImporter(project uuid.UUID, outline *opencode.Session) *importer {
	return &importer{outline: outline, project: project, seen: []string{}} // not nil: that would be NULL, to which nothing compares
}

// run stores the file that text reads, in q's transaction.
func (in *importer) run(ctx context.Context, q *db.Queries, text io.Reader) error {
	in.db = q
	outline := in.outline
	if err := in.refuseBorn(ctx); err != nil {
		return err
	}
	if err := q.PurgeDeletedSource(ctx, db.PurgeDeletedSourceParams{Source: source, SourceID: outline.SourceID}); err != nil {
		return err
	}
	if err := q.RegisterImportedRoles(ctx, outline.Agents); err != nil {
		return err
	}
	stored, err := q.ImportSession(ctx, db.ImportSessionParams{
		ID: outline.ID, ProjectID: in.project, RoleName: outline.Agent, Title: outline.Title,
		Source: source, SourceID: outline.SourceID, SourceParentID: outline.ParentSourceID, SourceUpdatedAt: outline.Updated,
		ArchivedAt: outline.Archived, Data: outline.Data.JSON, Raw: nullable(raw(outline.Data)), Metadata: outline.Metadata.JSON, CreatedAt: outline.Created,
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return in.older(ctx)
	}
	if err != nil {
		return err
	}
	in.result.Id, in.created = stored.ID, stored.Created
	if err := in.findBorn(ctx); err != nil {
		return err
	}
	for message, err := range opencode.Messages(text, outline) {
		if err != nil {
			return err
		}
		if err := in.add(ctx, message); err != nil {
			return err
		}
	}
	if err := in.finish(ctx); err != nil {
		return err
	}
	in.conclude(stored.Changed)
	return nil
}

// refuseBorn refuses the export of a session that was born here and is here still: it would be here twice, under one id outside.
func (in *importer) refuseBorn(ctx context.Context) error {
	id, ok := opencode.BornHere(in.outline.SourceID)
	if !ok {
		return nil
	}
	row, err := in.db.GetSession(ctx, id)
	switch {
	case errors.Is(err, pgx.ErrNoRows) || err == nil && row.SourceID != nil:
		return nil
	case err != nil:
		return err
	default:
		p := refuse("session_born_here")
		p.Errors = []api.FieldError{{Pointer: "/info/id", Message: p.Detail}}
		return p
	}
}

// findBorn remembers which of the session's messages were born here.
func (in *importer) findBorn(ctx context.Context) error {
	if in.created {
		return nil
	}
	ids, err := in.db.ListBornMessages(ctx, in.result.Id)
	in.born = make(map[uuid.UUID]bool, len(ids))
	for _, id := range ids {
		in.born[id] = true
	}
	return err
}

// older answers for an export that is older than the one that is stored.
func (in *importer) older(ctx context.Context) error {
	stored, err := in.db.GetSessionBySource(ctx, db.GetSessionBySourceParams{Source: source, SourceID: in.outline.SourceID})
	if err == nil && stored.ProjectID != in.project {
		return refuse(db.SessionsProjectImmutable, api.FieldError{Pointer: "query:projectId", Message: rules[db.SessionsProjectImmutable].detail})
	}
	in.result.Id = stored.ID
	in.result.Result = api.SessionImportResultOlder
	in.result.Messages.Unchanged = int64(in.outline.Messages)
	in.result.Parts.Unchanged = int64(in.outline.Parts)
	return err
}

func (in *importer) add(ctx context.Context, m opencode.Message) error {
	if id, ok := opencode.BornHere(m.SourceID); ok && in.born[id] { // it went out with an export and comes back: it is here
		in.result.Messages.Unchanged++
		in.result.Parts.Unchanged += int64(len(m.Parts))
		return nil
	}
	in.seen = append(in.seen, m.SourceID)
	b := &in.messages
	b.Ids = append(b.Ids, m.ID)
	b.SourceIds = append(b.SourceIds, m.SourceID)
	b.SourcePositions = append(b.SourcePositions, m.Position)
	b.Roles = append(b.Roles, m.Role)
	b.Data = append(b.Data, m.Data.JSON)
	b.Raw = append(b.Raw, raw(m.Data))
	b.Metadata = append(b.Metadata, m.Metadata.JSON)
	b.CreatedAt = append(b.CreatedAt, m.Created)
	in.bytes += len(m.Data.JSON)
	for _, p := range m.Parts {
		b := &in.parts
		b.Ids = append(b.Ids, p.ID)
		b.MessageIds = append(b.MessageIds, m.ID)
		b.CreatedAt = append(b.CreatedAt, m.Created)
		b.SourceIds = append(b.SourceIds, p.SourceID)
		b.SourcePositions = append(b.SourcePositions, p.Position)
		b.Types = append(b.Types, p.Type)
		b.Data = append(b.Data, p.Data.JSON)
		b.Raw = append(b.Raw, raw(p.Data))
		b.Metadata = append(b.Metadata, p.Metadata.JSON)
		in.bytes += len(p.Data.JSON)
	}
	if len(b.Ids) >= batchMessages || len(in.parts.Ids) >= batchParts || in.bytes >= batchBytes {
		return in.flush(ctx)
	}
	return nil
}

func (in *importer) flush(ctx context.Context) error {
	if len(in.messages.Ids) == 0 {
		return nil
	}
	in.messages.SessionID, in.messages.Source = in.result.Id, source
	in.parts.SessionID, in.parts.Source = in.result.Id, source
	changed, err := in.db.ImportMessages(ctx, in.messages)
	if err != nil {
		return err
	}
	count(&in.result.Messages, len(in.messages.Ids), changed)
	if !in.created {
		if err := in.resolve(ctx); err != nil {
			return err
		}
	}
	if changed, err = in.db.ImportParts(ctx, in.parts); err != nil {
		return err
	}
	count(&in.result.Parts, len(in.parts.Ids), changed)
	if !in.created {
		deleted, err := in.db.DeletePartsMissingFromImport(ctx, db.DeletePartsMissingFromImportParams{
			SessionID: in.result.Id, MessageIds: in.messages.Ids, Source: source, SourceIds: append([]string{}, in.parts.SourceIds...), // nil would be NULL
		})
		if err != nil {
			return err
		}
		in.result.Parts.Deleted += deleted
	}
	in.messages, in.parts, in.bytes = db.ImportMessagesParams{}, db.ImportPartsParams{}, 0
	return nil
}

// resolve puts the ids of messages that were here before in place of those that the file would give them: an id depends on a
// message's neighbours, and these may have gone since.
func (in *importer) resolve(ctx context.Context) error {
	rows, err := in.db.ListImportedMessages(ctx, db.ListImportedMessagesParams{Source: source, SourceIds: in.messages.SourceIds})
	if err != nil {
		return err
	}
	kept := make(map[string]uuid.UUID, len(rows))
	for _, row := range rows {
		kept[row.SourceID] = row.ID
	}
	replaced := map[uuid.UUID]uuid.UUID{}
	for i, id := range in.messages.Ids {
		in.messages.Ids[i] = kept[in.messages.SourceIds[i]]
		replaced[id] = in.messages.Ids[i]
	}
	for i, id := range in.parts.MessageIds {
		in.parts.MessageIds[i] = replaced[id]
	}
	return nil
}

// count adds a batch of size rows, of which those in created are new (true) or changed (false).
func count(counts *api.ImportCounts, size int, created []bool) {
	for _, isNew := range created {
		if isNew {
			counts.Created++
		} else {
			counts.Updated++
		}
	}
	counts.Unchanged += int64(size - len(created))
}

func (in *importer) finish(ctx context.Context) error {
	if err := in.flush(ctx); err != nil {
		return err
	}
	if in.created {
		return nil
	}
	deleted, err := in.db.DeleteMessagesMissingFromImport(ctx, db.DeleteMessagesMissingFromImportParams{SessionID: in.result.Id, Source: source, SourceIds: in.seen})
	in.result.Messages.Deleted += deleted.Messages
	in.result.Parts.Deleted += deleted.Parts
	return err
}

func (in *importer) conclude(changed bool) {
	m, p := in.result.Messages, in.result.Parts
	switch {
	case in.created:
		in.result.Result = api.SessionImportResultCreated
	case changed || m.Created+m.Updated+m.Deleted+p.Created+p.Updated+p.Deleted > 0:
		in.result.Result = api.SessionImportResultUpdated
	default:
		in.result.Result = api.SessionImportResultUnchanged
	}
}

// pointAt finds what in the file a refusal of the database is about: the rows in the batch that another session, or another
// message, has already.
func (s *Server) pointAt(ctx context.Context, refusal error, in *importer) error {
	var pgErr *pgconn.PgError
	if !errors.As(refusal, &pgErr) {
		return refusal
	}
	r, _ := ruleNamed(pgErr.ConstraintName)
	p := refuse(pgErr.ConstraintName)
	switch pgErr.ConstraintName {
	case db.SessionsProjectIDFkey, db.SessionsProjectImmutable:
		p.Errors = []api.FieldError{{Pointer: "query:projectId", Message: r.detail}}
		return p
	case db.SessionsParentAcyclic:
		p.Errors = []api.FieldError{{Pointer: "/info/parentID", Message: r.detail}}
		return p
	case db.MessagesSessionImmutable, db.PartsSessionImmutable:
	default:
		return refusal
	}
	rows, err := s.db.ListImportedIDs(ctx, db.ListImportedIDsParams{Source: source, MessageSourceIds: in.messages.SourceIds, PartSourceIds: in.parts.SourceIds})
	if err != nil {
		return err
	}
	messages, parts := map[string]db.ListImportedIDsRow{}, map[string]db.ListImportedIDsRow{}
	for _, row := range rows {
		if row.MessageSourceID == nil {
			messages[row.SourceID] = row
		} else {
			parts[row.SourceID] = row
		}
	}
	for i, id := range in.messages.SourceIds {
		if row, taken := messages[id]; taken && deref(row.SessionSourceID) != in.outline.SourceID {
			p.Errors = append(p.Errors, api.FieldError{Pointer: fmt.Sprintf("/messages/%d/info/id", in.messages.SourcePositions[i]), Message: "belongs to session " + deref(row.SessionSourceID)})
		}
	}
	for i, id := range in.parts.SourceIds {
		m := slices.Index(in.messages.Ids, in.parts.MessageIds[i])
		if row, taken := parts[id]; taken && (deref(row.SessionSourceID) != in.outline.SourceID || *row.MessageSourceID != in.messages.SourceIds[m]) {
			p.Errors = append(p.Errors, api.FieldError{Pointer: fmt.Sprintf("/messages/%d/parts/%d/id", in.messages.SourcePositions[m], in.parts.SourcePositions[i]), Message: "belongs to message " + *row.MessageSourceID})
		}
	}
	return p
}

// ExportSession implements the contract's operation.
func (s *Server) ExportSession(ctx context.Context, r api.ExportSessionRequestObject) (api.ExportSessionResponseObject, error) {
	return s.export(ctx, r.SessionId, "application/json", ".json", func(q *db.Queries, root db.Session, w io.Writer) error { return writeExport(ctx, q, root, w) })
}

// export makes a file from one snapshot and puts it aside, and only then is it sent: a client that reads slowly holds no connection
// to the database.
func (s *Server) export(ctx context.Context, id uuid.UUID, media, ending string, write func(*db.Queries, db.Session, io.Writer) error) (*exportFile, error) {
	out := &exportFile{media: media, spool: &spool{dir: s.TempDir}}
	done, err := s.beginTransfer(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	err = s.store.Tx(ctx, store.Snapshot, func(q *db.Queries) error {
		row, err := q.GetSession(ctx, id)
		if err != nil {
			return missing("session", err)
		}
		out.name = cmp.Or(deref(row.SourceID), row.Slug) + ending
		return write(q, row, out.spool)
	})
	if err != nil {
		out.spool.Close()
		if fault := (*opencode.Error)(nil); errors.As(err, &fault) { // of a stored row, not of what the client sent
			err = fmt.Errorf("a stored row: %s", err.Error())
		}
		return nil, err
	}
	return out, nil
}

// exportFile is the answer: a finished export, or an archive of them.
type exportFile struct {
	media string
	name  string
	spool *spool
}

// VisitExportSessionResponse implements the contract's answer.
func (f *exportFile) VisitExportSessionResponse(w http.ResponseWriter) error { return f.send(w) }

// VisitExportSessionTreeResponse implements the contract's answer.
func (f *exportFile) VisitExportSessionTreeResponse(w http.ResponseWriter) error { return f.send(w) }

// VisitExportAuditLogsResponse implements the contract's answer.
func (f *exportFile) VisitExportAuditLogsResponse(w http.ResponseWriter) error { return f.send(w) }

// send writes the file to the client and gives its storage back.
func (f *exportFile) send(w http.ResponseWriter) error {
	defer f.spool.Close()
	text, err := f.spool.Reader()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", f.media)
	w.Header().Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", f.name))
	_, err = io.Copy(w, text)
	return err
}

// beginTransfer waits until an import or export may use the database: they are long, and leave half of its connections to all
// other requests. The function that it returns ends the transfer.
func (s *Server) beginTransfer(ctx context.Context) (done func(), err error) {
	select {
	case s.transfers <- struct{}{}:
		return func() { <-s.transfers }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func writeExport(ctx context.Context, q *db.Queries, row db.Session, w io.Writer) error {
	record := opencode.SessionRecord{
		ID: row.ID, SourceID: row.SourceID, ParentSourceID: row.SourceParentID, ParentID: row.ParentID, ProjectID: row.ProjectID,
		Slug: row.Slug, Title: row.Title, RoleName: row.RoleName, ArchivedAt: row.ArchivedAt, CreatedAt: row.CreatedAt, UpdatedAt: row.UpdatedAt,
		Data: stored(row.Data, row.Raw), Metadata: row.Metadata,
	}
	if row.ParentID != nil && row.SourceID == nil {
		parent, err := q.GetSession(ctx, *row.ParentID)
		if err != nil {
			return err
		}
		record.ParentSourceID = parent.SourceID
	}
	ids, err := q.ListMessageIDsForExport(ctx, row.ID)
	if err != nil {
		return err
	}
	buffer := bufio.NewWriterSize(w, 64<<10)
	out := opencode.NewWriter(buffer)
	if err := out.Session(record); err != nil {
		return err
	}
	for batch := range slices.Chunk(ids, batchMessages) {
		if err := writeMessages(ctx, q, out, row.ID, batch); err != nil {
			return err
		}
	}
	if err := out.Close(); err != nil {
		return err
	}
	return buffer.Flush()
}

// writeMessages writes the messages in the order of ids.
func writeMessages(ctx context.Context, q *db.Queries, out *opencode.Writer, session uuid.UUID, ids []uuid.UUID) error {
	rows, err := q.ListMessagesForExport(ctx, db.ListMessagesForExportParams{SessionID: session, Ids: ids})
	if err != nil {
		return err
	}
	records := make(map[uuid.UUID]*opencode.MessageRecord, len(ids))
	for _, row := range rows {
		if row.PartID == uuid.Nil {
			records[row.MessageID] = &opencode.MessageRecord{
				ID: row.MessageID, SourceID: row.SourceID, Role: row.Kind, CreatedAt: row.CreatedAt, Data: []byte(row.Data), Metadata: row.Metadata,
			}
			continue
		}
		record := records[row.MessageID]
		record.Parts = append(record.Parts, opencode.PartRecord{ID: row.PartID, SourceID: row.SourceID, Type: row.Kind, Data: []byte(row.Data)})
	}
	for _, id := range ids {
		if err := out.Message(*records[id]); err != nil {
			return err
		}
	}
	return nil
}

// A spool holds a body until it is read again: in memory at first, in a file without a name beyond a megabyte.
type spool struct {
	dir    string
	memory bytes.Buffer
	file   *os.File
}

const spoolMemory = 1 << 20

func (s *spool) Write(p []byte) (int, error) {
	if s.file == nil && s.memory.Len()+len(p) <= spoolMemory {
		return s.memory.Write(p)
	}
	if s.file == nil {
		file, err := os.CreateTemp(s.dir, "hub-import-")
		if err != nil {
			return 0, errSpool(err)
		}
		s.file = file
		if err := os.Remove(file.Name()); err != nil {
			return 0, errSpool(err)
		}
		if _, err := file.Write(s.memory.Bytes()); err != nil {
			return 0, errSpool(err)
		}
	}
	n, err := s.file.Write(p)
	return n, errSpool(err)
}

// Reader reads from the start.
func (s *spool) Reader() (io.Reader, error) {
	if s.file == nil {
		return bytes.NewReader(s.memory.Bytes()), nil
	}
	_, err := s.file.Seek(0, io.SeekStart)
	return bufio.NewReaderSize(s.file, 64<<10), err
}

// ReaderAt reads anywhere.
func (s *spool) ReaderAt() (at io.ReaderAt, size int64, err error) {
	if s.file == nil {
		return bytes.NewReader(s.memory.Bytes()), int64(s.memory.Len()), nil
	}
	size, err = s.file.Seek(0, io.SeekEnd)
	return s.file, size, err
}

// Close gives memory and file back.
func (s *spool) Close() {
	if s.file != nil {
		s.file.Close()
	}
}

func errSpool(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", refuse("storage_unavailable"), err)
}
