package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"unicode/utf16"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/pgjson"
	"github.com/alkdev/hub/internal/store"
)

// Parts alone: the operations on /parts, and what each type asks of a part's data.

// partTypes holds what data must be, by the types that opencode 1.18 knows: the contract's KnownPart. The contract's check of bodies
// leaves it to the operations, because a union's error does not say what of which member is wrong.
type partTypes map[string]*openapi3.Schema

func partTypesOf(doc *openapi3.T) partTypes {
	types := partTypes{}
	for _, ref := range doc.Components.Schemas["KnownPart"].Value.OneOf {
		for _, name := range ref.Value.Properties["type"].Value.Enum {
			types[name.(string)] = ref.Value.Properties["data"].Value
		}
	}
	return types
}

// faults says what is wrong with a part's data, by pointers into it; data that is no valid JSON was refused before.
func (t partTypes) faults(kind string, data json.RawMessage) []api.FieldError {
	schema, known := t[kind]
	if !known {
		return nil
	}
	var value any
	if err := json.Unmarshal(data, &value); err != nil {
		return []api.FieldError{{Message: err.Error()}}
	}
	return fieldErrors(schema.VisitJSON(value, openapi3.MultiErrors()))
}

// checkParts refuses new parts that are not what their types ask for.
func (t partTypes) checkParts(pointer string, parts []api.PartCreate) (faults []api.FieldError) {
	for i, p := range parts {
		for _, fault := range t.faults(p.Type, orEmpty(p.Data)) {
			fault.Pointer = fmt.Sprintf("%s/%d/data%s", pointer, i, fault.Pointer)
			faults = append(faults, fault)
		}
	}
	return faults
}

// AppendParts implements the contract's operation: all parts in one statement.
func (s *Server) AppendParts(ctx context.Context, r api.AppendPartsRequestObject) (api.AppendPartsResponseObject, error) {
	if faults := s.partTypes.checkParts("/parts", r.Body.Parts); len(faults) > 0 {
		return nil, refuse("invalid_request", faults...)
	}
	arg := db.AppendPartsParams{SessionID: r.SessionId, MessageID: r.Body.MessageId}
	for i, p := range r.Body.Parts {
		data, metadata, err := storables(p.Data, p.Metadata)
		if err != nil {
			return nil, at(fmt.Sprintf("/parts/%d", i), err)
		}
		arg.Types = append(arg.Types, p.Type)
		arg.Data = append(arg.Data, data.JSON)
		arg.Raw = append(arg.Raw, raw(data))
		arg.Metadata = append(arg.Metadata, metadata.JSON)
	}
	rows, err := s.db.AppendParts(ctx, arg)
	if err != nil {
		return nil, pointAtAppendedParts(err, r.Body.Parts)
	}
	if len(rows) == 0 {
		return nil, notFound("session")
	}
	items := make([]api.Part, len(rows))
	for i, row := range rows {
		items[i] = appendedPart(r.Body.MessageId, r.Body.Parts[i], row.ID, row.Revision, row.CreatedAt, row.UpdatedAt)
	}
	return api.AppendParts201JSONResponse{Items: items}, nil
}

// ListParts implements the contract's operation.
func (s *Server) ListParts(ctx context.Context, r api.ListPartsRequestObject) (api.ListPartsResponseObject, error) {
	limit, summary := pageSize(r.Params.Limit), isSummary(r.Params.Content)
	filters := []any{r.SessionId, r.Params.Type, summary}
	last, _, err := after[uuid.UUID](r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	var rows []db.ListPartsRow
	if r.Params.Type == nil {
		rows, err = s.db.ListParts(ctx, db.ListPartsParams{SessionID: r.SessionId, AfterID: last, Summary: summary, RowLimit: limit + 1})
	} else {
		var ofType []db.ListPartsByTypeRow
		ofType, err = s.db.ListPartsByType(ctx, db.ListPartsByTypeParams{SessionID: r.SessionId, Type: *r.Params.Type, AfterID: last, Summary: summary, RowLimit: limit + 1})
		rows = each(ofType, func(row db.ListPartsByTypeRow) db.ListPartsRow { return db.ListPartsRow(row) })
	}
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 { // a session without such parts, or none
		if _, err := s.db.GetSession(ctx, r.SessionId); err != nil {
			return nil, missing("session", err)
		}
	}
	rows, cursor := next(rows, limit, filters, func(row db.ListPartsRow) uuid.UUID { return row.PartID })
	return api.ListParts200JSONResponse{Items: each(rows, func(row db.ListPartsRow) api.Part { return part(db.ListMessagesRow(row)) }), NextCursor: cursor}, nil
}

// GetPart implements the contract's operation.
func (s *Server) GetPart(ctx context.Context, r api.GetPartRequestObject) (api.GetPartResponseObject, error) {
	row, err := s.db.GetPart(ctx, db.GetPartParams{SessionID: r.SessionId, ID: r.PartId, Summary: isSummary(r.Params.Content)})
	if err != nil {
		return nil, missing("part", err)
	}
	return api.GetPart200JSONResponse{Body: part(db.ListMessagesRow(row)), Headers: api.GetPart200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// UpdatePart implements the contract's operation. As in UpdateSession, data is merged on the text as it was given. What has streamed
// in is part of that text, and of what is written.
func (s *Server) UpdatePart(ctx context.Context, r api.UpdatePartRequestObject) (api.UpdatePartResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	metadata, err := storablePatch(r.Body.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	which := db.GetPartParams{SessionID: r.SessionId, ID: r.PartId}
	var row db.GetPartRow
	err = s.store.Tx(ctx, store.ReadCommitted, func(q *db.Queries) error {
		change := db.UpdatePartParams{SessionID: r.SessionId, ID: r.PartId, IfMatch: expected, MetadataPatch: metadata}
		if r.Body.Data != nil {
			kind, err := q.LockPart(ctx, db.LockPartParams{SessionID: r.SessionId, ID: r.PartId})
			if err != nil {
				return err
			}
			if row, err = q.GetPart(ctx, which); err != nil {
				return err
			}
			data, err := mergePatch(given([]byte(row.Data)), *r.Body.Data)
			if err != nil {
				return at("/data", err)
			}
			if faults := s.partTypes.faults(kind, data.JSON); len(faults) > 0 {
				for i := range faults {
					faults[i].Pointer = "/data" + faults[i].Pointer
				}
				return refuse("part_data_invalid", faults...)
			}
			change.Data, change.Raw = data.JSON, nullable(raw(data))
		}
		changed, err := q.UpdatePart(ctx, change)
		if err != nil {
			return err
		}
		if row, err = q.GetPart(ctx, which); err == nil && changed == 0 {
			err = untouched(expected, func() error { return nil })
		}
		return err
	})
	if err != nil {
		return nil, missing("part", err)
	}
	return api.UpdatePart200JSONResponse{Body: part(db.ListMessagesRow(row)), Headers: api.UpdatePart200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// AppendPartDelta implements the contract's operation. The database takes only what begins where the text ends; what it refuses may
// be a retry, which is told by looking.
func (s *Server) AppendPartDelta(ctx context.Context, r api.AppendPartDeltaRequestObject) (api.AppendPartDeltaResponseObject, error) {
	escaped, err := pgjson.Escape(r.Body.Text)
	if err != nil {
		return nil, at("/text", err)
	}
	var text string
	if err := json.Unmarshal(escaped.JSON, &text); err != nil {
		return nil, err
	}
	inTx := store.InTx(ctx) // a refusal must not end the transaction
	if inTx {
		if _, err := s.store.Exec(ctx, "SAVEPOINT delta"); err != nil {
			return nil, err
		}
	}
	end, err := s.db.AppendPartDelta(ctx, db.AppendPartDeltaParams{SessionID: r.SessionId, ID: r.PartId, StartOffset: r.Body.Offset, Text: text})
	var refusal *pgconn.PgError
	if !errors.As(err, &refusal) || refusal.ConstraintName != db.PartDeltasContiguous && refusal.ConstraintName != db.PartTakesNoDeltas {
		if err != nil {
			return nil, missing("part", err)
		}
		return api.AppendPartDelta200JSONResponse{Offset: end}, nil
	}
	if inTx {
		if _, err := s.store.Exec(ctx, "ROLLBACK TO SAVEPOINT delta"); err != nil {
			return nil, err
		}
	}
	stored, lookErr := s.db.GetGrowingText(ctx, db.GetGrowingTextParams{SessionID: r.SessionId, ID: r.PartId})
	if lookErr != nil {
		return nil, lookErr
	}
	whole, delta := codeUnits(stored), codeUnits(text)
	if start, length := r.Body.Offset, int64(len(whole)); start <= length-int64(len(delta)) && slices.Equal(whole[start:start+int64(len(delta))], delta) {
		return api.AppendPartDelta200JSONResponse{Offset: start + int64(len(delta))}, nil
	}
	p := refuse(refusal.ConstraintName)
	if refusal.ConstraintName == db.PartDeltasContiguous {
		p.Errors = []api.FieldError{{Pointer: "/offset", Message: fmt.Sprintf("must be %d", len(whole))}}
	}
	return nil, p
}

// codeUnits are the UTF-16 code units of a string as it was given, which is stored escaped (X07).
func codeUnits(escaped string) []uint16 {
	units := make([]uint16, 0, len(escaped))
	for runes := []rune(escaped); len(runes) > 0; {
		var unit uint16
		switch {
		case runes[0] != '\x10' || len(runes) < 2:
			units = utf16.AppendRune(units, runes[0])
			runes = runes[1:]
			continue
		case runes[1] == 'u' && len(runes) >= 6:
			if _, err := fmt.Sscanf(string(runes[2:6]), "%04x", &unit); err == nil {
				units = append(units, unit)
				runes = runes[6:]
				continue
			}
		case runes[1] == '0':
			units, runes = append(units, 0), runes[2:]
			continue
		case runes[1] == '\x10':
			units, runes = append(units, 0x10), runes[2:]
			continue
		}
		units, runes = append(units, 0x10), runes[1:]
	}
	return units
}

// pointAtAppendedParts is pointAtAppended for parts alone.
func pointAtAppendedParts(refusal error, sent []api.PartCreate) error {
	var pgErr *pgconn.PgError
	if !errors.As(refusal, &pgErr) {
		return refusal
	}
	if faults := partsToBlame(pgErr.ConstraintName, "/parts", sent); len(faults) > 0 {
		return refuse(pgErr.ConstraintName, faults...)
	}
	return refusal
}

func isSummary[T ~string](content *T) bool { return content != nil && *content == "summary" }
