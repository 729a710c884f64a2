package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/opencode"
	"github.com/alkdev/hub/internal/pgjson"
	"github.com/alkdev/hub/internal/store"
)

// CreateSession implements the contract's operation.
func (s *Server) CreateSession(ctx context.Context, r api.CreateSessionRequestObject) (api.CreateSessionResponseObject, error) {
	data, metadata, err := storables(r.Body.Data, r.Body.Metadata)
	if err != nil {
		return nil, err
	}
	version := "1"
	if r.Body.Version != nil {
		version = *r.Body.Version
	}
	row, err := s.db.CreateSession(ctx, db.CreateSessionParams{
		ProjectID: r.Body.ProjectId, ParentID: r.Body.ParentId, RoleName: r.Body.RoleName, Slug: r.Body.Slug,
		Title: deref(r.Body.Title), Version: version, Data: data.JSON, Raw: nullable(raw(data)), Metadata: metadata.JSON,
	})
	if err != nil {
		return nil, err
	}
	return api.CreateSession201JSONResponse{
		Body:    session(row),
		Headers: api.CreateSession201ResponseHeaders{ETag: etag(row.Revision), Location: sessionPath(row.ID)},
	}, nil
}

// GetSession implements the contract's operation.
func (s *Server) GetSession(ctx context.Context, r api.GetSessionRequestObject) (api.GetSessionResponseObject, error) {
	row, err := s.db.GetSession(ctx, r.SessionId)
	if err != nil {
		return nil, missing("session", err)
	}
	return api.GetSession200JSONResponse{Body: session(row), Headers: api.GetSession200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// ListSessions implements the contract's operation.
func (s *Server) ListSessions(ctx context.Context, r api.ListSessionsRequestObject) (api.ListSessionsResponseObject, error) {
	limit, filters := pageSize(r.Params.Limit), r.Params
	filters.Limit, filters.Cursor = nil, nil
	before, err := before(r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListSessions(ctx, db.ListSessionsParams{
		BeforeID: before, RowLimit: limit + 1,
		ProjectID: r.Params.ProjectId, ParentID: r.Params.ParentId, RoleName: r.Params.RoleName, AccountID: r.Params.AccountId,
		RunState: (*string)(r.Params.RunState), Archived: r.Params.Archived, SourceID: r.Params.SourceId,
	})
	if err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, filters, func(row db.Session) uuid.UUID { return row.ID })
	return api.ListSessions200JSONResponse{Items: each(rows, session), NextCursor: cursor}, nil
}

// UpdateSession implements the contract's operation. A patch of data is merged here, on the text as it was given, so that
// numbers keep their spelling; any other patch is one statement.
func (s *Server) UpdateSession(ctx context.Context, r api.UpdateSessionRequestObject) (api.UpdateSessionResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	metadata, err := storablePatch(r.Body.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	change := db.UpdateSessionParams{
		ID: r.SessionId, IfMatch: expected,
		SetRoleName: r.Body.RoleName.IsSpecified(), RoleName: valueOrNull(r.Body.RoleName), Slug: r.Body.Slug, Title: r.Body.Title,
		RunState: (*string)(r.Body.RunState), MetadataPatch: metadata,
	}
	var row db.Session
	if r.Body.Data == nil {
		row, err = s.db.UpdateSession(ctx, change)
	} else {
		err = s.store.Tx(ctx, store.ReadCommitted, func(q *db.Queries) error {
			if row, err = q.LockSession(ctx, r.SessionId); err != nil {
				return err
			}
			data, err := mergePatch(exactly(row.Data, row.Raw), *r.Body.Data)
			if err != nil {
				return at("/data", err)
			}
			change.Data, change.Raw = data.JSON, nullable(raw(data))
			row, err = q.UpdateSession(ctx, change)
			return err
		})
	}
	if errors.Is(err, pgx.ErrNoRows) {
		err = untouched(expected, func() error { _, err := s.db.GetSession(ctx, r.SessionId); return missing("session", err) })
	}
	if err != nil {
		return nil, err
	}
	return api.UpdateSession200JSONResponse{Body: session(row), Headers: api.UpdateSession200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// mergePatch applies a JSON merge patch (RFC 7396) to a JSON object. It works on the escaped texts, because encoding/json
// reads names as Go strings, which hold no lone surrogates.
func mergePatch(object, patch json.RawMessage) (pgjson.Text, error) {
	target, err := pgjson.Escape(object)
	if err != nil {
		return pgjson.Text{}, err
	}
	change, err := pgjson.Escape(patch)
	if err != nil {
		return pgjson.Text{}, err
	}
	merged, err := mergeValue(target.JSON, change.JSON)
	if err != nil {
		return pgjson.Text{}, err
	}
	return pgjson.Escape(pgjson.Unescape(merged))
}

// mergeValue is the RFC's MergePatch: nulls in arrays stay, and what is no object gives way to one.
func mergeValue(target, patch json.RawMessage) (json.RawMessage, error) {
	members := map[string]json.RawMessage{}
	changes := map[string]json.RawMessage{}
	if !isObject(patch) {
		return patch, nil
	}
	if err := json.Unmarshal(patch, &changes); err != nil {
		return nil, err
	}
	if isObject(target) {
		if err := json.Unmarshal(target, &members); err != nil {
			return nil, err
		}
	}
	for name, change := range changes {
		if string(change) == "null" {
			delete(members, name)
			continue
		}
		merged, err := mergeValue(members[name], change)
		if err != nil {
			return nil, err
		}
		members[name] = merged
	}
	return json.Marshal(members)
}

func isObject(text json.RawMessage) bool { return bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) }

// DeleteSession implements the contract's operation.
func (s *Server) DeleteSession(ctx context.Context, r api.DeleteSessionRequestObject) (api.DeleteSessionResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	deleted, err := s.db.DeleteSession(ctx, db.DeleteSessionParams{ID: r.SessionId, IfMatch: expected, Descendants: deref(r.Params.Descendants)})
	if err == nil && len(deleted) == 0 {
		err = untouched(expected, func() error { _, err := s.db.GetSession(ctx, r.SessionId); return missing("session", err) })
	}
	if err != nil {
		return nil, err
	}
	return api.DeleteSession204Response{}, nil
}

// Messages ----------------------------------------------------------------------------------------------------------

// AppendMessage implements the contract's operation: all messages and parts in one statement.
func (s *Server) AppendMessage(ctx context.Context, r api.AppendMessageRequestObject) (api.AppendMessageResponseObject, error) {
	arg := db.AppendMessagesParams{SessionID: r.SessionId}
	var faults []api.FieldError //nolint:prealloc // there are none
	for i, m := range r.Body.Messages {
		faults = append(faults, s.partTypes.checkParts(fmt.Sprintf("/messages/%d/parts", i), m.Parts)...)
	}
	if len(faults) > 0 {
		return nil, refuse("invalid_request", faults...)
	}
	for i, m := range r.Body.Messages {
		data, metadata, err := storables(m.Data, m.Metadata)
		if err != nil {
			return nil, at(fmt.Sprintf("/messages/%d", i), err)
		}
		arg.Roles = append(arg.Roles, string(m.Role))
		arg.Data = append(arg.Data, data.JSON)
		arg.Raw = append(arg.Raw, raw(data))
		arg.Metadata = append(arg.Metadata, metadata.JSON)
		for j, p := range m.Parts {
			data, metadata, err := storables(p.Data, p.Metadata)
			if err != nil {
				return nil, at(fmt.Sprintf("/messages/%d/parts/%d", i, j), err)
			}
			arg.PartMessages = append(arg.PartMessages, int32(i+1))
			arg.PartTypes = append(arg.PartTypes, p.Type)
			arg.PartData = append(arg.PartData, data.JSON)
			arg.PartRaw = append(arg.PartRaw, raw(data))
			arg.PartMetadata = append(arg.PartMetadata, metadata.JSON)
		}
	}
	rows, err := s.db.AppendMessages(ctx, arg)
	if err != nil {
		return nil, pointAtAppended(err, r.Body.Messages)
	}
	if len(rows) == 0 {
		return nil, notFound("session")
	}
	items := make([]api.Message, len(rows))
	for i, row := range rows {
		items[i] = appended(r.SessionId, r.Body.Messages[i], row)
	}
	return api.AppendMessage201JSONResponse{Items: items}, nil
}

// pointAtAppended finds the message or part that the database has refused. PostgreSQL names the rule, not the row, so the ones that
// break it are looked for, in the rule's own words.
func pointAtAppended(refusal error, sent []api.MessageCreate) error {
	var pgErr *pgconn.PgError
	if !errors.As(refusal, &pgErr) {
		return refusal
	}
	var faults []api.FieldError
	for i, m := range sent {
		if pgErr.ConstraintName == db.MessagesMetadataCheck && !isMetadata(m.Metadata) {
			faults = append(faults, api.FieldError{Pointer: fmt.Sprintf("/messages/%d/metadata", i), Message: refuse(pgErr.ConstraintName).Detail})
		}
		faults = append(faults, partsToBlame(pgErr.ConstraintName, fmt.Sprintf("/messages/%d/parts", i), m.Parts)...)
	}
	if len(faults) == 0 {
		return refusal
	}
	return refuse(pgErr.ConstraintName, faults...)
}

// partsToBlame are the parts that break the rule.
func partsToBlame(rule, pointer string, sent []api.PartCreate) (faults []api.FieldError) {
	for j, part := range sent {
		switch {
		case rule == db.PartsMetadataCheck && !isMetadata(part.Metadata):
			faults = append(faults, api.FieldError{Pointer: fmt.Sprintf("%s/%d/metadata", pointer, j), Message: refuse(rule).Detail})
		case rule == db.PartsTypeLengthCheck && len(part.Type) > opencode.MaxIDLength:
			faults = append(faults, api.FieldError{Pointer: fmt.Sprintf("%s/%d/type", pointer, j), Message: refuse(rule).Detail})
		}
	}
	return faults
}

// isMetadata says what the database's function of that name says, of what the contract let through.
func isMetadata(metadata *api.Metadata) bool {
	var namespaces map[string]json.RawMessage
	if metadata == nil || json.Unmarshal(*metadata, &namespaces) != nil {
		return true
	}
	for name := range namespaces {
		if !metadataName.MatchString(name) {
			return false
		}
	}
	return true
}

var metadataName = regexp.MustCompile(`^_[a-z][a-z0-9_]*$`)

// ListMessages implements the contract's operation.
func (s *Server) ListMessages(ctx context.Context, r api.ListMessagesRequestObject) (api.ListMessagesResponseObject, error) {
	limit := pageSize(r.Params.Limit)
	last, _, err := after[uuid.UUID](r.Params.Cursor, r.SessionId)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListMessages(ctx, db.ListMessagesParams{SessionID: r.SessionId, AfterID: last, Summary: isSummary(r.Params.Content), RowLimit: limit + 1})
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 { // an empty session, or none
		if _, err := s.db.GetSession(ctx, r.SessionId); err != nil {
			return nil, missing("session", err)
		}
	}
	items, cursor := next(messages(r.SessionId, rows), limit, r.SessionId, func(m api.Message) uuid.UUID { return m.Id })
	return api.ListMessages200JSONResponse{Items: items, NextCursor: cursor}, nil
}

// GetMessage implements the contract's operation.
func (s *Server) GetMessage(ctx context.Context, r api.GetMessageRequestObject) (api.GetMessageResponseObject, error) {
	rows, err := s.db.GetMessage(ctx, db.GetMessageParams{SessionID: r.SessionId, MessageID: r.MessageId, Summary: isSummary(r.Params.Content)})
	if err != nil {
		return nil, err
	}
	found := messages(r.SessionId, each(rows, func(row db.GetMessageRow) db.ListMessagesRow { return db.ListMessagesRow(row) }))
	if len(found) == 0 {
		return nil, notFound("message")
	}
	return api.GetMessage200JSONResponse{Body: found[0], Headers: api.GetMessage200ResponseHeaders{ETag: etag(found[0].Revision)}}, nil
}

// DeleteMessage implements the contract's operation.
func (s *Server) DeleteMessage(ctx context.Context, r api.DeleteMessageRequestObject) (api.DeleteMessageResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	count, err := s.db.DeleteMessage(ctx, db.DeleteMessageParams{SessionID: r.SessionId, MessageID: r.MessageId, IfMatch: expected})
	if err == nil && count == 0 {
		err = untouched(expected, func() error {
			_, err := s.GetMessage(ctx, api.GetMessageRequestObject{SessionId: r.SessionId, MessageId: r.MessageId})
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	return api.DeleteMessage204Response{}, nil
}

// Rows to the contract's values --------------------------------------------------------------------------------------

func sessionPath(id uuid.UUID) string { return "/v1/sessions/" + id.String() }

func session(row db.Session) api.Session {
	return api.Session{
		Id: row.ID, ProjectId: row.ProjectID, ParentId: row.ParentID, ForkOfId: row.ForkOfID, AccountId: row.AccountID, RoleName: row.RoleName,
		Slug: row.Slug, Title: row.Title, Version: row.Version, RunState: api.RunState(row.RunState),
		LastActivityAt: row.LastActivityAt, ArchivedAt: row.ArchivedAt, Source: row.Source, SourceId: row.SourceID,
		Data: exactly(row.Data, row.Raw), Metadata: given(row.Metadata),
		Revision: row.Revision, CreatedAt: row.CreatedAt, UpdatedAt: row.UpdatedAt,
	}
}

// messages gathers rows of messages and parts: each message stands before its parts.
func messages(sessionID uuid.UUID, rows []db.ListMessagesRow) []api.Message {
	items := []api.Message{}
	for _, row := range rows {
		if row.PartID == uuid.Nil {
			items = append(items, api.Message{
				Id: row.MessageID, SessionId: sessionID, Role: api.MessageRole(row.Kind), SourceId: row.SourceID,
				Data: given([]byte(row.Data)), Metadata: given(row.Metadata),
				Revision: row.Revision, CreatedAt: row.CreatedAt, UpdatedAt: row.UpdatedAt, Parts: []api.Part{},
			})
			continue
		}
		message := &items[len(items)-1]
		message.Parts = append(message.Parts, part(row))
	}
	return items
}

func part(row db.ListMessagesRow) api.Part {
	p := api.Part{
		Id: row.PartID, MessageId: row.MessageID, Type: row.Kind, SourceId: row.SourceID,
		Data: given([]byte(row.Data)), Metadata: given(row.Metadata),
		Revision: row.Revision, CreatedAt: row.CreatedAt, UpdatedAt: row.UpdatedAt,
	}
	if row.Truncated {
		p.Truncated = &row.Truncated
	}
	return p
}

// appended is a message as it was sent, with what the database added.
func appended(sessionID uuid.UUID, sent api.MessageCreate, row db.AppendMessagesRow) api.Message {
	parts := make([]api.Part, len(sent.Parts))
	for i, p := range sent.Parts {
		parts[i] = appendedPart(row.ID, p, row.PartIds[i], row.Revision, row.CreatedAt, row.UpdatedAt)
	}
	return api.Message{
		Id: row.ID, SessionId: sessionID, Role: sent.Role, Data: orEmpty(sent.Data), Metadata: orEmpty(sent.Metadata),
		Revision: row.Revision, CreatedAt: row.CreatedAt, UpdatedAt: row.UpdatedAt, Parts: parts,
	}
}

func appendedPart(messageID uuid.UUID, sent api.PartCreate, id uuid.UUID, revision int32, created, updated time.Time) api.Part {
	return api.Part{
		Id: id, MessageId: messageID, Type: sent.Type, Data: orEmpty(sent.Data), Metadata: orEmpty(sent.Metadata),
		Revision: revision, CreatedAt: created, UpdatedAt: updated,
	}
}

func orEmpty(object *json.RawMessage) json.RawMessage {
	if object == nil {
		return json.RawMessage("{}")
	}
	return *object
}
