package api

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
)

// CreateProject implements the contract's operation.
func (s *Server) CreateProject(ctx context.Context, r api.CreateProjectRequestObject) (api.CreateProjectResponseObject, error) {
	data, metadata, err := storables(r.Body.Data, r.Body.Metadata)
	if err != nil {
		return nil, err
	}
	row, err := s.db.CreateProject(ctx, db.CreateProjectParams{
		Slug: r.Body.Slug, Name: r.Body.Name, Description: deref(r.Body.Description), Data: data.JSON, Metadata: metadata.JSON,
	})
	if err != nil {
		return nil, err
	}
	return api.CreateProject201JSONResponse{
		Body:    project(row),
		Headers: api.CreateProject201ResponseHeaders{ETag: etag(row.Revision), Location: "/v1/projects/" + row.ID.String()},
	}, nil
}

// GetProject implements the contract's operation.
func (s *Server) GetProject(ctx context.Context, r api.GetProjectRequestObject) (api.GetProjectResponseObject, error) {
	row, err := s.db.GetProject(ctx, r.ProjectId)
	if err != nil {
		return nil, missing("project", err)
	}
	return api.GetProject200JSONResponse{Body: project(row), Headers: api.GetProject200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// ListProjects implements the contract's operation.
func (s *Server) ListProjects(ctx context.Context, r api.ListProjectsRequestObject) (api.ListProjectsResponseObject, error) {
	limit, filters := pageSize(r.Params.Limit), r.Params
	filters.Limit, filters.Cursor = nil, nil
	slug, _, err := after[string](r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListProjects(ctx, db.ListProjectsParams{
		AfterSlug: slug, Slug: r.Params.Slug, Archived: r.Params.Archived, RowLimit: limit + 1,
	})
	if err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, filters, func(p db.Project) string { return p.Slug })
	return api.ListProjects200JSONResponse{Items: each(rows, project), NextCursor: cursor}, nil
}

// UpdateProject implements the contract's operation.
func (s *Server) UpdateProject(ctx context.Context, r api.UpdateProjectRequestObject) (api.UpdateProjectResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	data, metadata, err := storablePatches(r.Body.Data, r.Body.Metadata)
	if err != nil {
		return nil, err
	}
	row, err := s.db.UpdateProject(ctx, db.UpdateProjectParams{
		ID: r.ProjectId, IfMatch: expected,
		Slug: r.Body.Slug, Name: r.Body.Name, Description: r.Body.Description, Archived: r.Body.Archived, DataPatch: data, MetadataPatch: metadata,
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = untouched(expected, func() error { _, err := s.db.GetProject(ctx, r.ProjectId); return missing("project", err) })
	}
	if err != nil {
		return nil, err
	}
	return api.UpdateProject200JSONResponse{Body: project(row), Headers: api.UpdateProject200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// DeleteProject implements the contract's operation.
func (s *Server) DeleteProject(ctx context.Context, r api.DeleteProjectRequestObject) (api.DeleteProjectResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	count, err := s.db.DeleteProject(ctx, db.DeleteProjectParams{ID: r.ProjectId, IfMatch: expected})
	if err == nil && count == 0 {
		err = untouched(expected, func() error { _, err := s.db.GetProject(ctx, r.ProjectId); return missing("project", err) })
	}
	if err != nil {
		return nil, err
	}
	return api.DeleteProject204Response{}, nil
}

// CreateWorkspace implements the contract's operation.
func (s *Server) CreateWorkspace(ctx context.Context, r api.CreateWorkspaceRequestObject) (api.CreateWorkspaceResponseObject, error) {
	metadata, err := storable(r.Body.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	row, err := s.db.CreateWorkspace(ctx, db.CreateWorkspaceParams{ProjectID: r.ProjectId, Name: r.Body.Name, Path: r.Body.Path, Branch: r.Body.Branch, Metadata: metadata.JSON})
	if err != nil {
		return nil, missing("project", err)
	}
	return api.CreateWorkspace201JSONResponse{
		Body:    workspace(row),
		Headers: api.CreateWorkspace201ResponseHeaders{ETag: etag(row.Revision), Location: "/v1/workspaces/" + row.ID.String()},
	}, nil
}

// GetWorkspace implements the contract's operation.
func (s *Server) GetWorkspace(ctx context.Context, r api.GetWorkspaceRequestObject) (api.GetWorkspaceResponseObject, error) {
	row, err := s.db.GetWorkspace(ctx, r.WorkspaceId)
	if err != nil {
		return nil, missing("workspace", err)
	}
	return api.GetWorkspace200JSONResponse{Body: workspace(row), Headers: api.GetWorkspace200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// ListWorkspaces implements the contract's operation.
func (s *Server) ListWorkspaces(ctx context.Context, r api.ListWorkspacesRequestObject) (api.ListWorkspacesResponseObject, error) {
	limit, filters := pageSize(r.Params.Limit), r
	filters.Params.Limit, filters.Params.Cursor = nil, nil
	name, _, err := after[string](r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListWorkspaces(ctx, db.ListWorkspacesParams{ProjectID: r.ProjectId, AfterName: name, Name: r.Params.Name, RowLimit: limit + 1})
	if err = s.projectOf(ctx, r.ProjectId, len(rows), err); err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, filters, func(w db.Workspace) string { return w.Name })
	return api.ListWorkspaces200JSONResponse{Items: each(rows, workspace), NextCursor: cursor}, nil
}

// UpdateWorkspace implements the contract's operation.
func (s *Server) UpdateWorkspace(ctx context.Context, r api.UpdateWorkspaceRequestObject) (api.UpdateWorkspaceResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	metadata, err := storablePatch(r.Body.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	row, err := s.db.UpdateWorkspace(ctx, db.UpdateWorkspaceParams{
		ID: r.WorkspaceId, IfMatch: expected, Name: r.Body.Name, Path: r.Body.Path,
		SetBranch: r.Body.Branch.IsSpecified(), Branch: valueOrNull(r.Body.Branch), MetadataPatch: metadata,
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = untouched(expected, func() error { _, err := s.db.GetWorkspace(ctx, r.WorkspaceId); return missing("workspace", err) })
	}
	if err != nil {
		return nil, err
	}
	return api.UpdateWorkspace200JSONResponse{Body: workspace(row), Headers: api.UpdateWorkspace200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// DeleteWorkspace implements the contract's operation.
func (s *Server) DeleteWorkspace(ctx context.Context, r api.DeleteWorkspaceRequestObject) (api.DeleteWorkspaceResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	count, err := s.db.DeleteWorkspace(ctx, db.DeleteWorkspaceParams{ID: r.WorkspaceId, IfMatch: expected})
	if err == nil && count == 0 {
		err = untouched(expected, func() error { _, err := s.db.GetWorkspace(ctx, r.WorkspaceId); return missing("workspace", err) })
	}
	if err != nil {
		return nil, err
	}
	return api.DeleteWorkspace204Response{}, nil
}

func project(p db.Project) api.Project {
	return api.Project{
		Id: p.ID, Slug: p.Slug, Name: p.Name, Description: p.Description, ArchivedAt: p.ArchivedAt,
		Data: given(p.Data), Metadata: given(p.Metadata), Revision: p.Revision, CreatedAt: p.CreatedAt, UpdatedAt: p.UpdatedAt,
	}
}

func workspace(w db.Workspace) api.Workspace {
	return api.Workspace{
		Id: w.ID, ProjectId: w.ProjectID, Name: w.Name, Path: w.Path, Branch: w.Branch, Metadata: given(w.Metadata),
		Revision: w.Revision, CreatedAt: w.CreatedAt, UpdatedAt: w.UpdatedAt,
	}
}
