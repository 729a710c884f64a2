package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	openapi_types "github.com/oapi-codegen/runtime/types"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/pgjson"
	"github.com/alkdev/hub/internal/store"
)

// ArchiveSession implements the contract's operation.
func (s *Server) ArchiveSession(ctx context.Context, r api.ArchiveSessionRequestObject) (api.ArchiveSessionResponseObject, error) {
	row, err := s.db.ArchiveSession(ctx, db.ArchiveSessionParams{ID: r.SessionId, Archived: true, Descendants: deref(r.Params.Descendants)})
	if err != nil {
		return nil, missing("session", err)
	}
	return api.ArchiveSession200JSONResponse{Body: session(db.Session(row)), Headers: api.ArchiveSession200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// UnarchiveSession implements the contract's operation.
func (s *Server) UnarchiveSession(ctx context.Context, r api.UnarchiveSessionRequestObject) (api.UnarchiveSessionResponseObject, error) {
	row, err := s.db.ArchiveSession(ctx, db.ArchiveSessionParams{ID: r.SessionId, Archived: false, Descendants: deref(r.Params.Descendants)})
	if err != nil {
		return nil, missing("session", err)
	}
	return api.UnarchiveSession200JSONResponse{Body: session(db.Session(row)), Headers: api.UnarchiveSession200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// ListChildSessions implements the contract's operation.
func (s *Server) ListChildSessions(ctx context.Context, r api.ListChildSessionsRequestObject) (api.ListChildSessionsResponseObject, error) {
	type key struct {
		Depth int32
		ID    uuid.UUID
	}
	limit, filters := pageSize(r.Params.Limit), r
	filters.Params.Limit, filters.Params.Cursor = nil, nil
	last, _, err := after[key](r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListChildSessions(ctx, db.ListChildSessionsParams{
		SessionID: r.SessionId, Descendants: deref(r.Params.Descendants), AfterDepth: last.Depth, AfterID: last.ID, RowLimit: limit + 1,
	})
	if err == nil && len(rows) == 0 { // no children, or no session
		_, err = s.db.GetSession(ctx, r.SessionId)
	}
	if err != nil {
		return nil, missing("session", err)
	}
	rows, cursor := next(rows, limit, filters, func(row db.ListChildSessionsRow) key { return key{row.Depth, row.Session.ID} })
	return api.ListChildSessions200JSONResponse{NextCursor: cursor, Items: each(rows, func(row db.ListChildSessionsRow) api.ChildSession {
		return api.ChildSession{Depth: row.Depth, Session: session(row.Session)}
	})}, nil
}

// notOfAFork are the fields of a session's data that tell of the original alone.
const notOfAFork = `{"time":null,"slug":null,"title":null,"share":null,"revert":null}`

// ForkSession implements the contract's operation.
func (s *Server) ForkSession(ctx context.Context, r api.ForkSessionRequestObject) (api.ForkSessionResponseObject, error) {
	if r.Body.MessageId == nil && deref(r.Body.Before) {
		return nil, refuse("invalid_request", api.FieldError{Pointer: "/before", Message: "needs a messageId"})
	}
	done, err := s.beginTransfer(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	var row db.Session
	err = s.store.Tx(ctx, store.ReadCommitted, func(q *db.Queries) error {
		original, err := q.GetSession(ctx, r.SessionId)
		if err != nil {
			return missing("session", err)
		}
		data, err := mergePatch(exactly(original.Data, original.Raw), json.RawMessage(notOfAFork))
		if err != nil {
			return err
		}
		title := []rune(original.Title)
		fork := db.ForkSessionParams{
			SessionID: r.SessionId, MessageID: r.Body.MessageId, Slug: r.Body.Slug, Title: string(title[:min(len(title), 9_990)]) + " (fork)",
			Data: data.JSON, Raw: nullable(raw(data)),
		}
		if r.Body.Title != nil {
			fork.Title = *r.Body.Title
		}
		row, err = q.ForkSession(ctx, fork)
		if errors.Is(err, pgx.ErrNoRows) && r.Body.MessageId != nil {
			return refuse("fork_message_not_found")
		}
		if err != nil {
			return missing("session", err)
		}
		last := uuid.Max
		if r.Body.MessageId != nil {
			last = *r.Body.MessageId
		}
		if _, err := q.CopyMessages(ctx, db.CopyMessagesParams{SessionID: r.SessionId, ForkID: row.ID, LastID: last, Exclusive: deref(r.Body.Before)}); err != nil {
			return err
		}
		row, err = q.GetSession(ctx, row.ID) // its last activity is the copying
		return err
	})
	if err != nil {
		return nil, err
	}
	return api.ForkSession201JSONResponse{
		Body:    session(row),
		Headers: api.ForkSession201ResponseHeaders{ETag: etag(row.Revision), Location: sessionPath(row.ID)},
	}, nil
}

// GetSessionUsage implements the contract's operation.
func (s *Server) GetSessionUsage(ctx context.Context, r api.GetSessionUsageRequestObject) (api.GetSessionUsageResponseObject, error) {
	rows, err := s.db.GetSessionUsage(ctx, db.GetSessionUsageParams{SessionID: r.SessionId, Descendants: deref(r.Params.Descendants)})
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, notFound("session")
	}
	type model struct{ provider, model string }
	result := api.SessionUsage{Sessions: rows[0].Sessions, ByModel: []api.ModelUsage{}, ByDay: []api.DayUsage{}}
	models, days := map[model]*api.Usage{}, map[openapi_types.Date]*api.Usage{}
	for _, row := range rows {
		if row.Day == "" { // no assistant message
			continue
		}
		m := model{unescaped(row.ProviderID), unescaped(row.ModelID)}
		var day openapi_types.Date
		if err := day.UnmarshalText([]byte(row.Day)); err != nil {
			return nil, err
		}
		if models[m] == nil {
			models[m] = &api.Usage{}
		}
		if days[day] == nil {
			days[day] = &api.Usage{}
		}
		for _, sum := range []*api.Usage{&result.Total, models[m], days[day]} {
			sum.Messages += row.Messages
			sum.Cost += row.Cost
			sum.Tokens.Input += row.Input
			sum.Tokens.Output += row.Output
			sum.Tokens.Reasoning += row.Reasoning
			sum.Tokens.CacheRead += row.CacheRead
			sum.Tokens.CacheWrite += row.CacheWrite
		}
	}
	for _, m := range slices.SortedFunc(maps.Keys(models), func(a, b model) int {
		return cmp.Or(cmp.Compare(models[b].Cost, models[a].Cost), cmp.Compare(a.provider, b.provider), cmp.Compare(a.model, b.model))
	}) {
		result.ByModel = append(result.ByModel, api.ModelUsage{ProviderId: m.provider, ModelId: m.model, Usage: *models[m]})
	}
	for _, day := range slices.SortedFunc(maps.Keys(days), func(a, b openapi_types.Date) int { return a.Compare(b.Time) }) {
		result.ByDay = append(result.ByDay, api.DayUsage{Day: day, Usage: *days[day]})
	}
	return api.GetSessionUsage200JSONResponse(result), nil
}

// unescaped is a text that was read out of stored JSON, as plain text: U+FFFD stands for what text cannot hold.
func unescaped(text string) string {
	quoted, err := json.Marshal(text)
	if err != nil {
		return text
	}
	return pgjson.Clean(pgjson.Unescape(quoted))
}
