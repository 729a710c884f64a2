package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/pgjson"
	"github.com/alkdev/hub/internal/rolefiles"
)

// CreateRole implements the contract's operation.
func (s *Server) CreateRole(ctx context.Context, r api.CreateRoleRequestObject) (api.CreateRoleResponseObject, error) {
	data, metadata, err := storables(r.Body.Data, r.Body.Metadata)
	if err != nil {
		return nil, err
	}
	row, err := s.db.CreateRole(ctx, db.CreateRoleParams{
		Name: r.Body.Name, Description: deref(r.Body.Description), Prompt: deref(r.Body.Prompt), Data: data.JSON, Metadata: metadata.JSON,
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, refuse(db.RolesNameKey)
	}
	if err != nil {
		return nil, err
	}
	return api.CreateRole201JSONResponse{
		Body:    role(row),
		Headers: api.CreateRole201ResponseHeaders{ETag: etag(row.Revision), Location: "/v1/roles/" + row.ID.String()},
	}, nil
}

// GetRole implements the contract's operation.
func (s *Server) GetRole(ctx context.Context, r api.GetRoleRequestObject) (api.GetRoleResponseObject, error) {
	row, err := s.db.GetRole(ctx, r.RoleId)
	if err != nil {
		return nil, missing("role", err)
	}
	return api.GetRole200JSONResponse{Body: role(row), Headers: api.GetRole200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// ListRoles implements the contract's operation.
func (s *Server) ListRoles(ctx context.Context, r api.ListRolesRequestObject) (api.ListRolesResponseObject, error) {
	limit, filters := pageSize(r.Params.Limit), r.Params
	filters.Limit, filters.Cursor = nil, nil
	name, _, err := after[string](r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListRoles(ctx, db.ListRolesParams{
		AfterName: name, Name: r.Params.Name, Origin: (*string)(r.Params.Origin), FileSet: r.Params.FileSet, RowLimit: limit + 1,
	})
	if err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, filters, func(row db.Role) string { return row.Name })
	return api.ListRoles200JSONResponse{Items: each(rows, role), NextCursor: cursor}, nil
}

// UpdateRole implements the contract's operation.
func (s *Server) UpdateRole(ctx context.Context, r api.UpdateRoleRequestObject) (api.UpdateRoleResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	data, metadata, err := storablePatches(r.Body.Data, r.Body.Metadata)
	if err != nil {
		return nil, err
	}
	row, err := s.db.UpdateRole(ctx, db.UpdateRoleParams{
		ID: r.RoleId, IfMatch: expected,
		Name: r.Body.Name, Description: r.Body.Description, Prompt: r.Body.Prompt, DataPatch: data, MetadataPatch: metadata,
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = untouched(expected, func() error { _, err := s.db.GetRole(ctx, r.RoleId); return missing("role", err) })
	}
	if err != nil {
		return nil, err
	}
	return api.UpdateRole200JSONResponse{Body: role(row), Headers: api.UpdateRole200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// DeleteRole implements the contract's operation.
func (s *Server) DeleteRole(ctx context.Context, r api.DeleteRoleRequestObject) (api.DeleteRoleResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	count, err := s.db.DeleteRole(ctx, db.DeleteRoleParams{ID: r.RoleId, IfMatch: expected})
	if err == nil && count == 0 {
		err = untouched(expected, func() error { _, err := s.db.GetRole(ctx, r.RoleId); return missing("role", err) })
	}
	if err != nil {
		return nil, err
	}
	return api.DeleteRole204Response{}, nil
}

// SyncRoles implements the contract's operation: all files are read first, then one statement applies them.
func (s *Server) SyncRoles(ctx context.Context, r api.SyncRolesRequestObject) (api.SyncRolesResponseObject, error) {
	arg := db.SyncRolesParams{FileSet: r.Body.FileSet, Names: []string{}}
	var faults []api.FieldError
	for i, file := range r.Body.Files {
		blame := func(field string, err error) {
			faults = append(faults, api.FieldError{Pointer: fmt.Sprintf("/files/%d/%s", i, field), Message: err.Error()})
		}
		name, err := rolefiles.Name(file.Path)
		if err == nil && slices.Contains(arg.Names, name) {
			err = fmt.Errorf("is the second file of the role %s", name)
		}
		if err != nil {
			blame("path", err)
			continue
		}
		arg.Names = append(arg.Names, name)
		found, err := rolefiles.Parse(name, file.Content)
		if err == nil && strings.ContainsRune(found.Description, 0) {
			err = errors.New("description: holds U+0000, which PostgreSQL cannot hold in text")
		}
		var data pgjson.Text
		if err == nil {
			data, err = pgjson.Escape(found.Data)
		}
		if err != nil {
			blame("content", err)
			continue
		}
		arg.Descriptions = append(arg.Descriptions, found.Description)
		arg.Prompts = append(arg.Prompts, found.Prompt)
		arg.Data = append(arg.Data, data.JSON)
	}
	if len(faults) > 0 {
		return nil, refuse("role_file_invalid", faults...)
	}
	rows, err := s.db.SyncRoles(ctx, arg)
	if err != nil {
		return nil, err
	}
	result := api.RoleSyncResult{Created: []string{}, Updated: []string{}, Unchanged: slices.Clone(arg.Names), Removed: []string{}}
	slices.Sort(result.Unchanged)
	for _, row := range rows {
		switch row.Result {
		case "created":
			result.Created = append(result.Created, row.Name)
		case "updated":
			result.Updated = append(result.Updated, row.Name)
		case "removed":
			result.Removed = append(result.Removed, row.Name)
		default:
			faults = append(faults, api.FieldError{Pointer: fmt.Sprintf("/files/%d/path", slices.Index(arg.Names, row.Name)), Message: "gives the name of a role that another set has"})
		}
		result.Unchanged = slices.DeleteFunc(result.Unchanged, func(name string) bool { return name == row.Name })
	}
	if len(faults) > 0 {
		return nil, refuse("role_in_other_set", faults...)
	}
	return api.SyncRoles200JSONResponse(result), nil
}

func role(row db.Role) api.Role {
	return api.Role{
		Id: row.ID, Name: row.Name, Description: row.Description, Prompt: row.Prompt, Origin: api.RoleOrigin(row.Origin), FileSet: row.FileSet,
		Data: given(row.Data), Metadata: given(row.Metadata), Revision: row.Revision, CreatedAt: row.CreatedAt, UpdatedAt: row.UpdatedAt,
	}
}
