-- name: CreateProject :one
INSERT INTO projects (org_id, slug, name, description, data, metadata)
VALUES (current_org_id(), @slug, @name, @description, @data, @metadata)
RETURNING *;

-- name: GetProject :one
SELECT * FROM projects WHERE org_id = current_org_id() AND id = @id;

-- name: ListProjects :many
SELECT * FROM projects
WHERE org_id = current_org_id()
  AND slug > @after_slug
  AND (sqlc.narg('slug')::text IS NULL OR slug = sqlc.narg('slug'))
  AND (sqlc.narg('archived')::boolean IS NULL OR (archived_at IS NOT NULL) = sqlc.narg('archived'))
ORDER BY slug
LIMIT @row_limit;

-- name: UpdateProject :one
UPDATE projects SET
    slug        = coalesce(sqlc.narg('slug'), slug),
    name        = coalesce(sqlc.narg('name'), name),
    description = coalesce(sqlc.narg('description'), description),
    archived_at = CASE sqlc.narg('archived')::boolean WHEN true THEN coalesce(archived_at, now()) WHEN false THEN NULL ELSE archived_at END,
    data        = jsonb_merge_patch(data, sqlc.narg('data_patch')::jsonb),
    metadata    = jsonb_merge_patch(metadata, sqlc.narg('metadata_patch')::jsonb)
WHERE org_id = current_org_id() AND id = @id
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision)
RETURNING *;

-- name: DeleteProject :execrows
DELETE FROM projects
WHERE org_id = current_org_id() AND id = @id
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision);

-- name: CreateWorkspace :one
INSERT INTO workspaces (org_id, project_id, name, path, branch, metadata)
SELECT p.org_id, p.id, @name, @path, sqlc.narg('branch'), @metadata FROM projects p WHERE p.org_id = current_org_id() AND p.id = @project_id
RETURNING *;

-- name: GetWorkspace :one
SELECT * FROM workspaces WHERE org_id = current_org_id() AND id = @id;

-- name: ListWorkspaces :many
SELECT * FROM workspaces
WHERE org_id = current_org_id() AND project_id = @project_id
  AND name > @after_name
  AND (sqlc.narg('name')::text IS NULL OR name = sqlc.narg('name'))
ORDER BY name
LIMIT @row_limit;

-- name: UpdateWorkspace :one
UPDATE workspaces SET
    name     = coalesce(sqlc.narg('name'), name),
    path     = coalesce(sqlc.narg('path'), path),
    branch   = CASE WHEN @set_branch::boolean THEN sqlc.narg('branch') ELSE branch END,
    metadata = jsonb_merge_patch(metadata, sqlc.narg('metadata_patch')::jsonb)
WHERE org_id = current_org_id() AND id = @id
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision)
RETURNING *;

-- name: DeleteWorkspace :execrows
DELETE FROM workspaces
WHERE org_id = current_org_id() AND id = @id
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision);
