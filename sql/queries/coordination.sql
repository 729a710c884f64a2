-- name: CreateMapping :one
SELECT * FROM create_mapping(@kind, @session_id, sqlc.narg('parent_session_id'), sqlc.narg('spoke_id'), sqlc.narg('workspace_id'), @metadata);

-- name: GetMapping :one
SELECT * FROM mapping_details WHERE org_id = current_org_id() AND id = @id;

-- name: ListMappings :many
SELECT * FROM mapping_details
WHERE org_id = current_org_id()
  AND project_id = @project_id
  AND id < @before_id
  AND (sqlc.narg('kind')::text IS NULL OR kind = sqlc.narg('kind'))
  AND (sqlc.narg('status')::text IS NULL OR status = sqlc.narg('status'))
  AND (sqlc.narg('session_id')::uuid IS NULL OR session_id = sqlc.narg('session_id'))
  AND (sqlc.narg('parent_session_id')::uuid IS NULL OR parent_session_id = sqlc.narg('parent_session_id'))
  AND (sqlc.narg('task_id')::uuid IS NULL OR task_id = sqlc.narg('task_id'))
  AND (sqlc.narg('spoke_id')::uuid IS NULL OR spoke_id = sqlc.narg('spoke_id'))
  AND (sqlc.narg('workspace_id')::uuid IS NULL OR workspace_id = sqlc.narg('workspace_id'))
ORDER BY id DESC
LIMIT @row_limit;

-- name: EndMapping :one
SELECT * FROM end_mapping(@id, @status, @reason);
