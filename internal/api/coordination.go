package api

import (
	"context"
	"errors"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
)

// CreateMapping implements the contract's operation.
func (s *Server) CreateMapping(ctx context.Context, r api.CreateMappingRequestObject) (api.CreateMappingResponseObject, error) {
	metadata, err := storable(r.Body.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	row, err := s.db.CreateMapping(ctx, db.CreateMappingParams{
		Kind: string(r.Body.Kind), SessionID: r.Body.SessionId, ParentSessionID: r.Body.ParentSessionId, SpokeID: r.Body.SpokeId, WorkspaceID: r.Body.WorkspaceId, Metadata: metadata.JSON,
	})
	if err != nil {
		if errors.Is(err, pgx.ErrNoRows) { // the session that the statement starts from
			return nil, refuse(db.MappingsSessionIDFkey) // as it would say, had a row come so far as to break it
		}
		return nil, err
	}
	return api.CreateMapping201JSONResponse{Body: mapping(row), Headers: api.CreateMapping201ResponseHeaders{ETag: etag(row.Revision), Location: "/v1/mappings/" + row.ID.String()}}, nil
}

// GetMapping implements the contract's operation.
func (s *Server) GetMapping(ctx context.Context, r api.GetMappingRequestObject) (api.GetMappingResponseObject, error) {
	row, err := s.db.GetMapping(ctx, r.MappingId)
	if err != nil {
		return nil, missing("mapping", err)
	}
	return api.GetMapping200JSONResponse{Body: mapping(row), Headers: api.GetMapping200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// ListMappings implements the contract's operation.
func (s *Server) ListMappings(ctx context.Context, r api.ListMappingsRequestObject) (api.ListMappingsResponseObject, error) {
	limit, filters := pageSize(r.Params.Limit), r
	filters.Params.Limit, filters.Params.Cursor = nil, nil
	before, err := before(r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListMappings(ctx, db.ListMappingsParams{
		ProjectID: r.ProjectId, BeforeID: before, RowLimit: limit + 1, Kind: (*string)(r.Params.Kind), Status: (*string)(r.Params.Status),
		SessionID: r.Params.SessionId, ParentSessionID: r.Params.ParentSessionId, TaskID: r.Params.TaskId, SpokeID: r.Params.SpokeId, WorkspaceID: r.Params.WorkspaceId,
	})
	if err = s.projectOf(ctx, r.ProjectId, len(rows), err); err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, filters, func(m db.MappingDetail) uuid.UUID { return m.ID })
	return api.ListMappings200JSONResponse{Items: each(rows, mapping), NextCursor: cursor}, nil
}

// EndMapping implements the contract's operation.
func (s *Server) EndMapping(ctx context.Context, r api.EndMappingRequestObject) (api.EndMappingResponseObject, error) {
	row, err := s.db.EndMapping(ctx, db.EndMappingParams{ID: r.MappingId, Status: string(r.Body.Status), Reason: deref(r.Body.Reason)})
	if err != nil {
		return nil, missing("mapping", err)
	}
	return api.EndMapping200JSONResponse{Body: mapping(row), Headers: api.EndMapping200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

func mapping(m db.MappingDetail) api.Mapping {
	return api.Mapping{
		Id: m.ID, Kind: api.MappingKind(m.Kind), ProjectId: m.ProjectID, SessionId: m.SessionID, ParentSessionId: m.ParentSessionID,
		TaskId: m.TaskID, TaskSlug: m.TaskSlug, TaskName: m.TaskName, SpokeId: m.SpokeID, WorkspaceId: m.WorkspaceID, Status: api.MappingStatus(m.Status), Reason: m.Reason,
		LeaseExpiresAt: m.LeaseExpiresAt, EndedAt: m.EndedAt, Metadata: given(m.Metadata), Revision: m.Revision, CreatedAt: m.CreatedAt, UpdatedAt: m.UpdatedAt,
	}
}
