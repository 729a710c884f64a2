package api

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/store"
)

// ListAuditLogs implements the contract's operation.
func (s *Server) ListAuditLogs(ctx context.Context, r api.ListAuditLogsRequestObject) (api.ListAuditLogsResponseObject, error) {
	limit, filters := pageSize(r.Params.Limit), r.Params
	filters.Limit, filters.Cursor = nil, nil
	before, found, err := after[time.Time](r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	params := db.ListAuditLogsParams{
		Platform: deref(r.Params.Platform), OwnerID: r.Params.OwnerId, ApiKeyID: r.Params.ApiKeyId, ActingSessionID: r.Params.SessionId,
		TargetID: r.Params.TargetId, Action: r.Params.Action, TargetType: r.Params.TargetType, Since: r.Params.Since, Until: r.Params.Until, RowLimit: limit + 1,
	}
	if found {
		params.Before = &before
	}
	rows, err := s.db.ListAuditLogs(ctx, params)
	if err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, filters, func(l db.AuditLog) time.Time { return l.CreatedAt })
	return api.ListAuditLogs200JSONResponse{Items: each(rows, auditLog), NextCursor: cursor}, nil
}

const batchAuditLogs = 1000

// ExportAuditLogs implements the contract's operation. Like the export of a session it is made from one snapshot and put aside.
func (s *Server) ExportAuditLogs(ctx context.Context, r api.ExportAuditLogsRequestObject) (api.ExportAuditLogsResponseObject, error) {
	done, err := s.beginTransfer(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	out := &exportFile{media: "application/x-ndjson", name: "audit.jsonl", spool: &spool{dir: s.TempDir}}
	err = s.store.Tx(ctx, store.Snapshot, func(q *db.Queries) error {
		lines := json.NewEncoder(out.spool)
		lines.SetEscapeHTML(false)
		params := db.ExportAuditLogsParams{
			Platform: deref(r.Params.Platform), OwnerID: r.Params.OwnerId, ApiKeyID: r.Params.ApiKeyId, ActingSessionID: r.Params.SessionId,
			TargetID: r.Params.TargetId, Action: r.Params.Action, TargetType: r.Params.TargetType, Since: r.Params.Since, Until: r.Params.Until, RowLimit: batchAuditLogs,
		}
		for {
			rows, err := q.ExportAuditLogs(ctx, params)
			if err != nil {
				return err
			}
			for _, row := range rows {
				if err := lines.Encode(auditLog(row)); err != nil {
					return err
				}
				params.After = row.CreatedAt
			}
			if len(rows) < batchAuditLogs {
				return nil
			}
		}
	})
	if err != nil {
		out.spool.Close()
		return nil, err
	}
	return out, nil
}

// VerifyAuditLog implements the contract's operation.
func (s *Server) VerifyAuditLog(ctx context.Context, r api.VerifyAuditLogRequestObject) (api.VerifyAuditLogResponseObject, error) {
	row, err := s.db.VerifyAuditLog(ctx, deref(r.Params.Platform))
	if err != nil {
		return nil, err
	}
	answer := api.VerifyAuditLog200JSONResponse{
		Intact: row.BrokenPosition == nil, Entries: deref(row.Entries), HeadPosition: deref(row.HeadPosition), HeadHash: hex.EncodeToString(row.HeadHash),
		AnchorPosition: deref(row.AnchorPosition),
	}
	if row.BrokenPosition != nil {
		answer.Broken = &api.AuditBreak{Position: *row.BrokenPosition, Id: row.BrokenID, How: api.AuditBreakHow(deref(row.BrokenHow))}
	}
	return answer, nil
}

// GetRetentionPolicy implements the contract's operation.
func (s *Server) GetRetentionPolicy(ctx context.Context, _ api.GetRetentionPolicyRequestObject) (api.GetRetentionPolicyResponseObject, error) {
	row, err := s.db.GetRetentionPolicy(ctx)
	if err != nil {
		return nil, err // each organisation has one
	}
	policy := retentionPolicy(row)
	return api.GetRetentionPolicy200JSONResponse{Body: policy, Headers: api.GetRetentionPolicy200ResponseHeaders{ETag: etag(policy.Revision)}}, nil
}

// SetRetentionPolicy implements the contract's operation.
func (s *Server) SetRetentionPolicy(ctx context.Context, r api.SetRetentionPolicyRequestObject) (api.SetRetentionPolicyResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	metadata, err := storablePatch(r.Body.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	row, err := s.db.SetRetentionPolicy(ctx, db.SetRetentionPolicyParams{
		IfMatch: expected, SetAuditDays: r.Body.AuditDays.IsSpecified(), AuditDays: valueOrNull(r.Body.AuditDays),
		SetSessionDays: r.Body.SessionDays.IsSpecified(), SessionDays: valueOrNull(r.Body.SessionDays), MetadataPatch: metadata,
		SetCallDays: r.Body.CallDays.IsSpecified(), CallDays: valueOrNull(r.Body.CallDays),
		SetCallPayloadDays: r.Body.CallPayloadDays.IsSpecified(), CallPayloadDays: valueOrNull(r.Body.CallPayloadDays), CallPayloadLimit: r.Body.CallPayloadLimit,
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = untouched(expected, func() error { _, err := s.db.GetRetentionPolicy(ctx); return err })
	}
	if err != nil {
		return nil, err
	}
	policy := retentionPolicy(db.GetRetentionPolicyRow(row))
	return api.SetRetentionPolicy200JSONResponse{Body: policy, Headers: api.SetRetentionPolicy200ResponseHeaders{ETag: etag(policy.Revision)}}, nil
}

func afterEpoch(t time.Time) *time.Time {
	if t.Unix() == 0 {
		return nil
	}
	return &t
}

func auditLog(l db.AuditLog) api.AuditLog {
	return api.AuditLog{
		Id: l.ID, Position: l.Position, CreatedAt: l.CreatedAt, OwnerId: l.OwnerID, ActorSource: l.ActorSource, DatabaseUser: l.DatabaseUser,
		ApiKeyId: l.ApiKeyID, SessionId: l.ActingSessionID, Action: l.Action, TargetType: l.TargetType, TargetId: l.TargetID,
		Changes: given(l.Changes), PreviousHash: hex.EncodeToString(l.PreviousHash), Hash: hex.EncodeToString(l.Hash),
	}
}

func retentionPolicy(row db.GetRetentionPolicyRow) api.RetentionPolicy {
	p := row.RetentionPolicy
	return api.RetentionPolicy{
		AuditDays: p.AuditDays, SessionDays: p.SessionDays, CallDays: p.CallDays, CallPayloadDays: p.CallPayloadDays, CallPayloadLimit: p.CallPayloadLimit,
		OldestCallAt: afterEpoch(row.OldestCallAt), OldestCallPayloadsAt: afterEpoch(row.OldestPayloadsAt),
		Metadata: given(p.Metadata), Revision: p.Revision, CreatedAt: p.CreatedAt, UpdatedAt: p.UpdatedAt,
	}
}
