-- name: CreateRole :one
-- A name that only an import has used so far is defined by this. No row: somebody has defined it already.
INSERT INTO roles AS r (org_id, name, description, prompt, data, metadata)
VALUES (current_org_id(), @name, @description, @prompt, @data, @metadata)
ON CONFLICT (org_id, name) DO UPDATE SET
    description = excluded.description, prompt = excluded.prompt, origin = excluded.origin, data = excluded.data, metadata = r.metadata || excluded.metadata
WHERE r.origin = 'import'
RETURNING *;

-- name: GetRole :one
SELECT * FROM roles WHERE org_id = current_org_id() AND id = @id;

-- name: ListRoles :many
SELECT * FROM roles
WHERE org_id = current_org_id()
  AND name > @after_name
  AND (sqlc.narg('name')::text IS NULL OR name = sqlc.narg('name'))
  AND (sqlc.narg('origin')::text IS NULL OR origin = sqlc.narg('origin'))
  AND (sqlc.narg('file_set')::text IS NULL OR file_set = sqlc.narg('file_set'))
ORDER BY name
LIMIT @row_limit;

-- name: UpdateRole :one
-- Whoever changes what an import has only named defines it.
UPDATE roles SET
    name        = coalesce(sqlc.narg('name'), name),
    description = coalesce(sqlc.narg('description'), description),
    prompt      = coalesce(sqlc.narg('prompt'), prompt),
    origin      = CASE origin WHEN 'import' THEN 'api' ELSE origin END,
    data        = jsonb_merge_patch(data, sqlc.narg('data_patch')::jsonb),
    metadata    = jsonb_merge_patch(metadata, sqlc.narg('metadata_patch')::jsonb)
WHERE org_id = current_org_id() AND id = @id
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision)
RETURNING *;

-- name: DeleteRole :execrows
DELETE FROM roles
WHERE org_id = current_org_id() AND id = @id
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision);

-- name: SyncRoles :many
-- What became of a set of role files: created, updated or removed names, or taken ones, which another set has; then nothing was changed.
WITH file AS (
    SELECT unnest(@names::text[]) AS name, unnest(@descriptions::text[]) AS description, unnest(@prompts::text[]) AS prompt, unnest(@data::jsonb[]) AS data
), taken AS (
    SELECT r.name FROM roles r JOIN file f ON f.name = r.name WHERE r.org_id = current_org_id() AND r.origin = 'file' AND r.file_set <> @file_set::text
), synced AS (
    INSERT INTO roles AS r (org_id, name, description, prompt, origin, file_set, data)
    SELECT current_org_id(), f.name, f.description, f.prompt, 'file', @file_set::text, f.data FROM file f WHERE NOT EXISTS (SELECT FROM taken)
    ON CONFLICT (org_id, name) DO UPDATE SET
        description = excluded.description, prompt = excluded.prompt, origin = excluded.origin, file_set = excluded.file_set, data = excluded.data
    WHERE (r.origin <> 'file' OR r.file_set = excluded.file_set)
      AND (r.description, r.prompt, r.origin, r.data::text) IS DISTINCT FROM (excluded.description, excluded.prompt, excluded.origin, excluded.data::text)
    RETURNING r.name, CASE WHEN xmax = 0 THEN 'created' ELSE 'updated' END AS result
), removed AS (
    DELETE FROM roles r
    WHERE r.org_id = current_org_id() AND r.file_set = @file_set::text AND r.name <> ALL (@names::text[]) AND NOT EXISTS (SELECT FROM taken)
    RETURNING r.name
)
SELECT s.name, s.result::text AS result FROM synced s
UNION ALL SELECT r.name, 'removed' FROM removed r
UNION ALL SELECT t.name, 'taken' FROM taken t
ORDER BY name;
