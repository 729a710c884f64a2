package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/store"
)

// CreateTask implements the contract's operation.
func (s *Server) CreateTask(ctx context.Context, r api.CreateTaskRequestObject) (api.CreateTaskResponseObject, error) {
	metadata, err := storable(r.Body.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	path := r.Body.Slug + ".md"
	if r.Body.Path != nil {
		path = *r.Body.Path
	}
	var row db.TaskDetail
	err = s.store.Tx(ctx, store.ReadCommitted, func(q *db.Queries) error {
		id, err := q.CreateTask(ctx, db.CreateTaskParams{
			ProjectID: r.ProjectId, Slug: r.Body.Slug, Name: r.Body.Name, Path: path,
			Scope: (*string)(r.Body.Scope), Risk: (*string)(r.Body.Risk), Impact: (*string)(r.Body.Impact), Level: (*string)(r.Body.Level), Priority: (*string)(r.Body.Priority),
			Tags: notNil(deref(r.Body.Tags)), Assignee: r.Body.Assignee, Due: r.Body.Due, Body: deref(r.Body.Body), Metadata: metadata.JSON,
		})
		if err != nil {
			return err
		}
		if wanted := deref(r.Body.DependsOn); len(wanted) > 0 {
			found, err := q.AddDependencies(ctx, db.AddDependenciesParams{ID: id, Slugs: wanted})
			if err != nil {
				return err
			}
			if err := allFound(wanted, found); err != nil {
				return err
			}
		}
		row, err = q.GetTask(ctx, id)
		return err
	})
	if err != nil {
		return nil, noProject(err, db.TasksProjectIDFkey)
	}
	return api.CreateTask201JSONResponse{Body: task(row), Headers: api.CreateTask201ResponseHeaders{ETag: etag(row.Revision), Location: "/v1/tasks/" + row.ID.String()}}, nil
}

// allFound points at the slugs that are no tasks of the project.
func allFound(wanted, found []string) error {
	p := refuse("task_dependency_not_found")
	for i, slug := range wanted {
		if !slices.Contains(found, slug) {
			p.Errors = append(p.Errors, api.FieldError{Pointer: fmt.Sprintf("/dependsOn/%d", i), Message: "is no task of the project"})
		}
	}
	if p.Errors == nil {
		return nil
	}
	return p
}

// noProject makes the foreign key's refusal of a project that the path names its 404.
func noProject(err error, rule string) error {
	if refusedBy(err, rule) {
		return notFound("project")
	}
	return err
}

// GetTask implements the contract's operation.
func (s *Server) GetTask(ctx context.Context, r api.GetTaskRequestObject) (api.GetTaskResponseObject, error) {
	row, err := s.db.GetTask(ctx, r.TaskId)
	if err != nil {
		return nil, missing("task", err)
	}
	return api.GetTask200JSONResponse{Body: task(row), Headers: api.GetTask200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// ListTasks implements the contract's operation.
func (s *Server) ListTasks(ctx context.Context, r api.ListTasksRequestObject) (api.ListTasksResponseObject, error) {
	limit, filters := pageSize(r.Params.Limit), r
	filters.Params.Limit, filters.Params.Cursor = nil, nil
	slug, _, err := after[string](r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListTasks(ctx, db.ListTasksParams{
		ProjectID: r.ProjectId, AfterSlug: slug, RowLimit: limit + 1, Slug: r.Params.Slug, Status: (*string)(r.Params.Status), PathPrefix: r.Params.PathPrefix,
		Tag: r.Params.Tag, Level: (*string)(r.Params.Level), Assignee: r.Params.Assignee, Ready: r.Params.Ready, Archived: r.Params.Archived,
	})
	if err = s.projectOf(ctx, r.ProjectId, len(rows), err); err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, filters, func(t db.ListTasksRow) string { return t.Slug })
	return api.ListTasks200JSONResponse{Items: each(rows, func(row db.ListTasksRow) api.Task {
		item := task(db.TaskDetail(row))
		item.Body = nil
		return item
	}), NextCursor: cursor}, nil
}

// UpdateTask implements the contract's operation.
func (s *Server) UpdateTask(ctx context.Context, r api.UpdateTaskRequestObject) (api.UpdateTaskResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	metadata, err := storablePatch(r.Body.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	change := db.UpdateTaskParams{
		ID: r.TaskId, IfMatch: expected, Slug: r.Body.Slug, Name: r.Body.Name, Path: r.Body.Path, Body: r.Body.Body, Archived: r.Body.Archived, MetadataPatch: metadata,
		SetScope: r.Body.Scope.IsSpecified(), Scope: valueOrNull(r.Body.Scope), SetRisk: r.Body.Risk.IsSpecified(), Risk: valueOrNull(r.Body.Risk),
		SetImpact: r.Body.Impact.IsSpecified(), Impact: valueOrNull(r.Body.Impact), SetLevel: r.Body.Level.IsSpecified(), Level: valueOrNull(r.Body.Level),
		SetPriority: r.Body.Priority.IsSpecified(), Priority: valueOrNull(r.Body.Priority), SetAssignee: r.Body.Assignee.IsSpecified(), Assignee: valueOrNull(r.Body.Assignee),
		SetDue: r.Body.Due.IsSpecified(), Due: valueOrNull(r.Body.Due),
	}
	if r.Body.Tags != nil {
		change.Tags = notNil(*r.Body.Tags)
	}
	var row db.TaskDetail
	err = s.store.Tx(ctx, store.ReadCommitted, func(q *db.Queries) error {
		if change.Archived != nil { // before the task's own row: others' counts change with it
			if _, err := q.LockProjectOfTask(ctx, r.TaskId); err != nil {
				return err
			}
		}
		if _, err := q.UpdateTask(ctx, change); err != nil {
			return err
		}
		row, err = q.GetTask(ctx, r.TaskId)
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = untouched(expected, func() error { _, err := s.db.GetTask(ctx, r.TaskId); return missing("task", err) })
	}
	if err != nil {
		return nil, err
	}
	return api.UpdateTask200JSONResponse{Body: task(row), Headers: api.UpdateTask200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// DeleteTask implements the contract's operation.
func (s *Server) DeleteTask(ctx context.Context, r api.DeleteTaskRequestObject) (api.DeleteTaskResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	count, err := s.db.DeleteTask(ctx, db.DeleteTaskParams{ID: r.TaskId, IfMatch: expected})
	if err == nil && count == 0 {
		err = untouched(expected, func() error { _, err := s.db.GetTask(ctx, r.TaskId); return missing("task", err) })
	}
	if err != nil {
		return nil, err
	}
	return api.DeleteTask204Response{}, nil
}

// Dependencies ------------------------------------------------------------------------------------------------------

// AddDependency implements the contract's operation.
func (s *Server) AddDependency(ctx context.Context, r api.AddDependencyRequestObject) (api.AddDependencyResponseObject, error) {
	if _, err := s.db.AddDependency(ctx, db.AddDependencyParams{ID: r.TaskId, DependsOnTaskID: r.Body.DependsOnTaskId}); err != nil {
		return nil, missing("task", err)
	}
	row, err := s.db.GetTask(ctx, r.TaskId)
	if err != nil {
		return nil, missing("task", err)
	}
	return api.AddDependency201JSONResponse{Body: task(row), Headers: api.AddDependency201ResponseHeaders{
		ETag: etag(row.Revision), Location: "/v1/tasks/" + row.ID.String() + "/dependencies/" + r.Body.DependsOnTaskId.String(),
	}}, nil
}

// RemoveDependency implements the contract's operation.
func (s *Server) RemoveDependency(ctx context.Context, r api.RemoveDependencyRequestObject) (api.RemoveDependencyResponseObject, error) {
	count, err := s.db.RemoveDependency(ctx, db.RemoveDependencyParams{ID: r.TaskId, DependsOnTaskID: r.DependsOnTaskId})
	if err == nil && count == 0 {
		if _, err = s.db.GetTask(ctx, r.TaskId); err == nil {
			err = notFound("dependency")
		} else {
			err = missing("task", err)
		}
	}
	if err != nil {
		return nil, err
	}
	return api.RemoveDependency204Response{}, nil
}

// ListDependencies implements the contract's operation.
func (s *Server) ListDependencies(ctx context.Context, r api.ListDependenciesRequestObject) (api.ListDependenciesResponseObject, error) {
	limit := pageSize(r.Params.Limit)
	slug, _, err := after[string](r.Params.Cursor, r.TaskId)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListDependencies(ctx, db.ListDependenciesParams{ID: r.TaskId, AfterSlug: slug, RowLimit: limit + 1})
	if err = s.taskOf(ctx, r.TaskId, len(rows), err); err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, r.TaskId, func(d db.ListDependenciesRow) string { return d.Slug })
	return api.ListDependencies200JSONResponse{NextCursor: cursor, Items: each(rows, func(d db.ListDependenciesRow) api.Dependency {
		return api.Dependency{Id: d.ID, Slug: d.Slug, Name: d.Name, Status: api.TaskStatus(d.Status), Archived: d.Archived}
	})}, nil
}

// projectOf tells a project of which nothing is listed from one that there is not.
func (s *Server) projectOf(ctx context.Context, id uuid.UUID, rows int, err error) error {
	if err == nil && rows == 0 {
		_, err = s.db.GetProject(ctx, id)
		return missing("project", err)
	}
	return err
}

// taskOf tells a task of which nothing is listed from one that there is not.
func (s *Server) taskOf(ctx context.Context, id uuid.UUID, rows int, err error) error {
	if err == nil && rows == 0 {
		_, err = s.db.GetTask(ctx, id)
		return missing("task", err)
	}
	return err
}

// Notes and history ---------------------------------------------------------------------------------------------------

// AddTaskNote implements the contract's operation.
func (s *Server) AddTaskNote(ctx context.Context, r api.AddTaskNoteRequestObject) (api.AddTaskNoteResponseObject, error) {
	row, err := s.db.AddTaskNote(ctx, db.AddTaskNoteParams{ID: r.TaskId, Body: r.Body.Body})
	if err != nil {
		return nil, missing("task", err)
	}
	return api.AddTaskNote201JSONResponse(note(row)), nil
}

// ListTaskNotes implements the contract's operation.
func (s *Server) ListTaskNotes(ctx context.Context, r api.ListTaskNotesRequestObject) (api.ListTaskNotesResponseObject, error) {
	limit := pageSize(r.Params.Limit)
	last, _, err := after[uuid.UUID](r.Params.Cursor, r.TaskId)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListTaskNotes(ctx, db.ListTaskNotesParams{ID: r.TaskId, AfterID: last, RowLimit: limit + 1})
	if err = s.taskOf(ctx, r.TaskId, len(rows), err); err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, r.TaskId, func(n db.TaskNote) uuid.UUID { return n.ID })
	return api.ListTaskNotes200JSONResponse{Items: each(rows, note), NextCursor: cursor}, nil
}

// GetTaskDocument implements the contract's operation.
func (s *Server) GetTaskDocument(ctx context.Context, r api.GetTaskDocumentRequestObject) (api.GetTaskDocumentResponseObject, error) {
	text, err := s.db.GetTaskDocument(ctx, r.TaskId)
	if err != nil {
		return nil, missing("task", err)
	}
	return api.GetTaskDocument200TextmarkdownResponse{Body: strings.NewReader(text), ContentLength: int64(len(text))}, nil
}

// ListTaskStatusChanges implements the contract's operation.
func (s *Server) ListTaskStatusChanges(ctx context.Context, r api.ListTaskStatusChangesRequestObject) (api.ListTaskStatusChangesResponseObject, error) {
	limit := pageSize(r.Params.Limit)
	last, _, err := after[uuid.UUID](r.Params.Cursor, r.TaskId)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListTaskStatusChanges(ctx, db.ListTaskStatusChangesParams{ID: r.TaskId, AfterID: last, RowLimit: limit + 1})
	if err = s.taskOf(ctx, r.TaskId, len(rows), err); err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, r.TaskId, func(c db.TaskStatusChange) uuid.UUID { return c.ID })
	return api.ListTaskStatusChanges200JSONResponse{NextCursor: cursor, Items: each(rows, func(c db.TaskStatusChange) api.TaskStatusChange {
		return api.TaskStatusChange{
			Id: c.ID, FromStatus: api.TaskStatus(c.FromStatus), ToStatus: api.TaskStatus(c.ToStatus), Reason: c.Reason,
			AccountId: c.AccountID, SessionId: c.SessionID, MappingId: c.MappingID, CreatedAt: c.CreatedAt,
		}
	})}, nil
}

// Work ----------------------------------------------------------------------------------------------------------------

const defaultLease = 300 // seconds, as the contract says

// ClaimTask implements the contract's operation.
func (s *Server) ClaimTask(ctx context.Context, r api.ClaimTaskRequestObject) (api.ClaimTaskResponseObject, error) {
	row, err := s.db.ClaimTask(ctx, db.ClaimTaskParams{ID: r.TaskId, SessionID: r.Body.SessionId, LeaseSeconds: defaultTo(deref(r.Body.LeaseSeconds), defaultLease)})
	if err != nil {
		return nil, missing("task", err)
	}
	return api.ClaimTask200JSONResponse{Body: task(row), Headers: api.ClaimTask200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// ClaimNextTask implements the contract's operation.
func (s *Server) ClaimNextTask(ctx context.Context, r api.ClaimNextTaskRequestObject) (api.ClaimNextTaskResponseObject, error) {
	row, err := s.db.ClaimNextTask(ctx, db.ClaimNextTaskParams{
		ProjectID: r.ProjectId, SessionID: r.Body.SessionId, LeaseSeconds: defaultTo(deref(r.Body.LeaseSeconds), defaultLease),
		PathPrefix: r.Body.PathPrefix, Tags: notNil(deref(r.Body.Tags)), Level: (*string)(r.Body.Level), MaxRisk: (*string)(r.Body.MaxRisk),
	})
	if errors.Is(err, pgx.ErrNoRows) { // nothing is ready, or there is no such project or session
		if _, err := s.db.GetProject(ctx, r.ProjectId); err != nil {
			return nil, missing("project", err)
		}
		if session, err := s.db.GetSession(ctx, r.Body.SessionId); errors.Is(err, pgx.ErrNoRows) || err == nil && session.ProjectID != r.ProjectId {
			return nil, refuse(db.MappingsSessionIDFkey) // as it would say, had a row come so far as to break it
		} else if err != nil {
			return nil, err
		}
		return api.ClaimNextTask204Response{}, nil
	}
	if err != nil {
		return nil, err
	}
	return api.ClaimNextTask200JSONResponse{Body: task(row), Headers: api.ClaimNextTask200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// HeartbeatClaim implements the contract's operation.
func (s *Server) HeartbeatClaim(ctx context.Context, r api.HeartbeatClaimRequestObject) (api.HeartbeatClaimResponseObject, error) {
	row, err := s.db.ExtendClaim(ctx, db.ExtendClaimParams{ID: r.TaskId, MappingID: r.Body.MappingId})
	if err != nil {
		return nil, missing("task", err)
	}
	return api.HeartbeatClaim200JSONResponse{Body: task(row), Headers: api.HeartbeatClaim200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// endClaim ends an assignment, and moves its task (W11).
func (s *Server) endClaim(ctx context.Context, id, mapping uuid.UUID, status, taskStatus string, reason *string) (api.Task, string, error) {
	row, err := s.db.EndClaim(ctx, db.EndClaimParams{ID: id, MappingID: mapping, Status: status, TaskStatus: taskStatus, Reason: deref(reason)})
	return task(row), etag(row.Revision), missing("task", err)
}

// ReleaseTask implements the contract's operation.
func (s *Server) ReleaseTask(ctx context.Context, r api.ReleaseTaskRequestObject) (api.ReleaseTaskResponseObject, error) {
	body, tag, err := s.endClaim(ctx, r.TaskId, r.Body.MappingId, "aborted", "pending", r.Body.Reason)
	if err != nil {
		return nil, err
	}
	return api.ReleaseTask200JSONResponse{Body: body, Headers: api.ReleaseTask200ResponseHeaders{ETag: tag}}, nil
}

// CompleteTask implements the contract's operation.
func (s *Server) CompleteTask(ctx context.Context, r api.CompleteTaskRequestObject) (api.CompleteTaskResponseObject, error) {
	body, tag, err := s.endClaim(ctx, r.TaskId, r.Body.MappingId, "completed", "completed", r.Body.Reason)
	if err != nil {
		return nil, err
	}
	return api.CompleteTask200JSONResponse{Body: body, Headers: api.CompleteTask200ResponseHeaders{ETag: tag}}, nil
}

// FailTask implements the contract's operation.
func (s *Server) FailTask(ctx context.Context, r api.FailTaskRequestObject) (api.FailTaskResponseObject, error) {
	body, tag, err := s.endClaim(ctx, r.TaskId, r.Body.MappingId, "failed", "failed", r.Body.Reason)
	if err != nil {
		return nil, err
	}
	return api.FailTask200JSONResponse{Body: body, Headers: api.FailTask200ResponseHeaders{ETag: tag}}, nil
}

// BlockTask implements the contract's operation.
func (s *Server) BlockTask(ctx context.Context, r api.BlockTaskRequestObject) (api.BlockTaskResponseObject, error) {
	var (
		body api.Task
		tag  string
		err  error
	)
	if r.Body.MappingId != nil {
		body, tag, err = s.endClaim(ctx, r.TaskId, *r.Body.MappingId, "aborted", "blocked", r.Body.Reason)
	} else {
		body, tag, err = s.setAside(ctx, r.TaskId, []string{"pending"}, "blocked", r.Body.Reason)
	}
	if err != nil {
		return nil, err
	}
	return api.BlockTask200JSONResponse{Body: body, Headers: api.BlockTask200ResponseHeaders{ETag: tag}}, nil
}

// setAside moves a task that nobody works on.
func (s *Server) setAside(ctx context.Context, id uuid.UUID, from []string, to string, reason *string) (api.Task, string, error) {
	row, err := s.db.SetTaskAside(ctx, db.SetTaskAsideParams{ID: id, FromStatuses: from, ToStatus: to, Reason: deref(reason)})
	return task(row), etag(row.Revision), missing("task", err)
}

// UnblockTask implements the contract's operation.
func (s *Server) UnblockTask(ctx context.Context, r api.UnblockTaskRequestObject) (api.UnblockTaskResponseObject, error) {
	body, tag, err := s.setAside(ctx, r.TaskId, []string{"blocked"}, "pending", r.Body.Reason)
	if err != nil {
		return nil, err
	}
	return api.UnblockTask200JSONResponse{Body: body, Headers: api.UnblockTask200ResponseHeaders{ETag: tag}}, nil
}

// ReopenTask implements the contract's operation.
func (s *Server) ReopenTask(ctx context.Context, r api.ReopenTaskRequestObject) (api.ReopenTaskResponseObject, error) {
	body, tag, err := s.setAside(ctx, r.TaskId, []string{"completed", "failed"}, "pending", r.Body.Reason)
	if err != nil {
		return nil, err
	}
	return api.ReopenTask200JSONResponse{Body: body, Headers: api.ReopenTask200ResponseHeaders{ETag: tag}}, nil
}

// Rows to the contract's values ---------------------------------------------------------------------------------------

func task(t db.TaskDetail) api.Task {
	out := api.Task{
		Id: t.ID, ProjectId: t.ProjectID, Slug: t.Slug, Name: t.Name, Path: t.Path, Status: api.TaskStatus(t.Status),
		Scope: t.Scope, Risk: t.Risk, Impact: t.Impact, Level: t.Level, Priority: t.Priority, Tags: notNil(t.Tags), Assignee: t.Assignee, Due: t.Due, Body: &t.Body,
		DependsOn: notNil(t.DependsOn), Ready: t.Status == "pending" && t.UnmetCount == 0 && t.ArchivedAt == nil,
		UnmetCount: t.UnmetCount, FailedCount: t.FailedCount, DownstreamCount: t.DownstreamCount,
		StartedAt: t.StartedAt, CompletedAt: t.CompletedAt, FileCreatedAt: t.FileCreatedAt, FileModifiedAt: t.FileModifiedAt, ArchivedAt: t.ArchivedAt,
		Metadata: given(t.Metadata), Revision: t.Revision, CreatedAt: t.CreatedAt, UpdatedAt: t.UpdatedAt,
	}
	if t.MappingID != nil {
		out.Claim = &api.TaskClaim{MappingId: *t.MappingID, SessionId: deref(t.SessionID), LeaseSeconds: deref(t.LeaseSeconds), LeaseExpiresAt: deref(t.LeaseExpiresAt), ClaimedAt: deref(t.ClaimedAt)}
	}
	return out
}

func note(n db.TaskNote) api.Note {
	return api.Note{Id: n.ID, Body: n.Body, AccountId: n.AccountID, SessionId: n.SessionID, CreatedAt: n.CreatedAt}
}
