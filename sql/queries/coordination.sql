-- name: CreateDelegation :one
INSERT INTO mappings (org_id, kind, project_id, session_id, parent_session_id, metadata)
SELECT s.org_id, 'delegation', s.project_id, s.id, @parent_session_id, @metadata FROM sessions s WHERE s.org_id = current_org_id() AND s.id = @session_id
RETURNING id;

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
ORDER BY id DESC
LIMIT @row_limit;

-- name: EndMapping :one
UPDATE mappings SET status = @status, reason = @reason
WHERE org_id = current_org_id() AND id = @id
RETURNING id;

-- name: LockProjectOfMapping :one
SELECT p.id FROM mappings m JOIN projects p ON p.org_id = m.org_id AND p.id = m.project_id WHERE m.org_id = current_org_id() AND m.id = @id FOR NO KEY UPDATE OF p;
