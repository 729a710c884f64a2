-- name: CreateTask :one
-- With its dependencies, which must be tasks of the project: those that are not are the missing ones, and then nothing is kept (the handler sees to it).
INSERT INTO tasks (org_id, project_id, slug, name, path, scope, risk, impact, level, priority, tags, assignee, due, body, metadata)
VALUES (current_org_id(), @project_id, @slug, @name, @path, sqlc.narg('scope'), sqlc.narg('risk'), sqlc.narg('impact'), sqlc.narg('level'), sqlc.narg('priority'),
        @tags, sqlc.narg('assignee'), sqlc.narg('due'), @body, @metadata)
RETURNING id;

-- name: GetTask :one
SELECT * FROM task_details WHERE org_id = current_org_id() AND id = @id;

-- name: ListTasks :many
-- The columns of task_details, but for bodies: a page of them could be large.
SELECT org_id, id, project_id, slug, name, path, scope, risk, impact, level, priority, tags, assignee, due, ''::text AS body, file_created_at, file_modified_at, frontmatter, base,
       archived_at, status, started_at, completed_at, unmet_count, failed_count, downstream_count, priority_rank, metadata, revision, created_at, updated_at,
       mapping_id, session_id, lease_seconds, lease_expires_at, claimed_at, depends_on
FROM task_details
WHERE org_id = current_org_id()
  AND project_id = @project_id
  AND slug > @after_slug
  AND (sqlc.narg('slug')::text IS NULL OR slug = sqlc.narg('slug'))
  AND (sqlc.narg('status')::task_status IS NULL OR status = sqlc.narg('status'))
  AND (sqlc.narg('path_prefix')::text IS NULL OR path ^@ sqlc.narg('path_prefix')::text)
  AND (sqlc.narg('tag')::text IS NULL OR sqlc.narg('tag') = ANY (tags))
  AND (sqlc.narg('level')::task_level IS NULL OR level = sqlc.narg('level'))
  AND (sqlc.narg('assignee')::text IS NULL OR assignee = sqlc.narg('assignee'))
  AND (sqlc.narg('ready')::boolean IS NULL OR (status = 'pending' AND unmet_count = 0 AND archived_at IS NULL) = sqlc.narg('ready'))
  AND (sqlc.narg('archived')::boolean IS NULL OR (archived_at IS NOT NULL) = sqlc.narg('archived'))
ORDER BY slug
LIMIT @row_limit;

-- name: UpdateTask :one
UPDATE tasks SET
    slug        = coalesce(sqlc.narg('slug'), slug),
    name        = coalesce(sqlc.narg('name'), name),
    path        = coalesce(sqlc.narg('path'), path),
    scope       = CASE WHEN @set_scope::boolean THEN sqlc.narg('scope') ELSE scope END,
    risk        = CASE WHEN @set_risk::boolean THEN sqlc.narg('risk') ELSE risk END,
    impact      = CASE WHEN @set_impact::boolean THEN sqlc.narg('impact') ELSE impact END,
    level       = CASE WHEN @set_level::boolean THEN sqlc.narg('level') ELSE level END,
    priority    = CASE WHEN @set_priority::boolean THEN sqlc.narg('priority') ELSE priority END,
    tags        = coalesce(sqlc.narg('tags')::text[], tags),
    assignee    = CASE WHEN @set_assignee::boolean THEN sqlc.narg('assignee') ELSE assignee END,
    due         = CASE WHEN @set_due::boolean THEN sqlc.narg('due') ELSE due END,
    body        = coalesce(sqlc.narg('body'), body),
    archived_at = CASE sqlc.narg('archived')::boolean WHEN true THEN coalesce(archived_at, now()) WHEN false THEN NULL ELSE archived_at END,
    metadata    = jsonb_merge_patch(metadata, sqlc.narg('metadata_patch')::jsonb)
WHERE org_id = current_org_id() AND id = @id
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision)
RETURNING id;

-- name: DeleteTask :execrows
DELETE FROM tasks
WHERE org_id = current_org_id() AND id = @id
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision);

-- name: AddDependencies :many
-- By the prerequisites' slugs. Those that are no tasks of the project are not among what is returned.
WITH wanted AS (
    SELECT t.org_id, t.project_id, t.id AS dependent_task_id, p.id AS depends_on_task_id, p.slug
    FROM tasks t JOIN tasks p ON p.org_id = t.org_id AND p.project_id = t.project_id
    WHERE t.org_id = current_org_id() AND t.id = @id AND p.slug = ANY (@slugs::text[])
), added AS (
    INSERT INTO task_dependencies (org_id, project_id, dependent_task_id, depends_on_task_id)
    SELECT w.org_id, w.project_id, w.dependent_task_id, w.depends_on_task_id FROM wanted w
    ON CONFLICT (org_id, project_id, dependent_task_id, depends_on_task_id) DO NOTHING
)
SELECT w.slug FROM wanted w;

-- name: AddDependency :one
INSERT INTO task_dependencies AS d (org_id, project_id, dependent_task_id, depends_on_task_id)
SELECT t.org_id, t.project_id, t.id, @depends_on_task_id FROM tasks t WHERE t.org_id = current_org_id() AND t.id = @id
RETURNING d.id;

-- name: RemoveDependency :execrows
DELETE FROM task_dependencies d
WHERE d.org_id = current_org_id() AND d.dependent_task_id = @id AND d.depends_on_task_id = @depends_on_task_id
  AND d.project_id = (SELECT t.project_id FROM tasks t WHERE t.org_id = current_org_id() AND t.id = @id);

-- name: ListDependencies :many
SELECT p.id, p.slug, p.name, p.status, (p.archived_at IS NOT NULL)::boolean AS archived
FROM tasks t
JOIN task_dependencies d ON d.org_id = t.org_id AND d.project_id = t.project_id AND d.dependent_task_id = t.id
JOIN tasks p ON p.org_id = d.org_id AND p.id = d.depends_on_task_id
WHERE t.org_id = current_org_id() AND t.id = @id AND p.slug > @after_slug
ORDER BY p.slug
LIMIT @row_limit;

-- name: AddTaskNote :one
INSERT INTO task_notes AS n (org_id, project_id, task_id, body)
SELECT t.org_id, t.project_id, t.id, @body FROM tasks t WHERE t.org_id = current_org_id() AND t.id = @id
RETURNING n.*;

-- name: ListTaskNotes :many
SELECT n.* FROM tasks t JOIN task_notes n ON n.org_id = t.org_id AND n.project_id = t.project_id AND n.task_id = t.id
WHERE t.org_id = current_org_id() AND t.id = @id AND n.id > @after_id
ORDER BY n.id
LIMIT @row_limit;

-- name: GetTaskDocument :one
SELECT document FROM task_documents WHERE org_id = current_org_id() AND id = @id;

-- name: ListTaskStatusChanges :many
SELECT c.* FROM tasks t JOIN task_status_changes c ON c.org_id = t.org_id AND c.project_id = t.project_id AND c.task_id = t.id
WHERE t.org_id = current_org_id() AND t.id = @id AND c.id > @after_id
ORDER BY c.id
LIMIT @row_limit;


-- Work ------------------------------------------------------------------------------------------------------------

-- name: ClaimTask :one
SELECT * FROM claim_task(@id, @session_id, @lease_seconds);

-- name: ClaimNextTask :one
SELECT * FROM claim_next_task(@project_id, @session_id, @lease_seconds, sqlc.narg('path_prefix'), @tags::text[], sqlc.narg('level')::task_level, sqlc.narg('max_risk')::task_risk);

-- name: ExtendClaim :one
SELECT * FROM extend_claim(@id, @mapping_id);

-- name: EndClaim :one
SELECT * FROM end_claim(@id, @mapping_id, @status, @task_status::task_status, @reason);

-- name: SetTaskAside :one
SELECT * FROM set_task_aside(@id, (@from_statuses::text[])::task_status[], @to_status::task_status, @reason);

-- name: LockProjectOfTask :one
SELECT p.id FROM tasks t JOIN projects p ON p.org_id = t.org_id AND p.id = t.project_id WHERE t.org_id = current_org_id() AND t.id = @id FOR NO KEY UPDATE OF p;


-- Sync ------------------------------------------------------------------------------------------------------------

-- name: LockProject :one
SELECT id FROM projects WHERE org_id = current_org_id() AND id = @id FOR NO KEY UPDATE;

-- name: ListTasksForSync :many
-- What sync compares: bodies as their hashes. The dependencies are asked for beside it: a join would be planned badly while a large sync is new.
SELECT t.id, t.slug, t.name, t.path, t.scope, t.risk, t.impact, t.level, t.priority, t.tags, t.assignee, t.due, encode(sha256(convert_to(t.body, 'UTF8')), 'hex')::text AS body_hash,
       t.file_created_at, t.file_modified_at, t.frontmatter, t.base, (t.archived_at IS NOT NULL)::boolean AS archived
FROM tasks t WHERE t.org_id = current_org_id() AND t.project_id = @project_id;

-- name: ListDependencyEdges :many
SELECT dependent_task_id, depends_on_task_id FROM task_dependencies WHERE org_id = current_org_id() AND project_id = @project_id;

-- name: LockTasks :many
-- In the order of their ids. What others are changing is waited for, and read as it is then.
SELECT id FROM tasks WHERE org_id = current_org_id() AND project_id = @project_id AND id = ANY (@ids::uuid[]) ORDER BY id FOR NO KEY UPDATE;

-- name: CreateTasksFromFiles :many
INSERT INTO tasks (org_id, project_id, slug, name, path, scope, risk, impact, level, priority, tags, assignee, due, body, file_created_at, file_modified_at, frontmatter, base, status)
SELECT current_org_id(), @project_id, r.slug, r.name, r.path, r.scope, r.risk, r.impact, r.level, r.priority, coalesce(r.tags, '{}'), r.assignee, r.due, r.body, r.created, r.modified, r.frontmatter, r.base, r.status
FROM jsonb_to_recordset(@tasks::jsonb) AS r(slug text, name text, path text, scope task_scope, risk task_risk, impact task_impact, level task_level, priority task_priority,
     tags text[], assignee text, due text, body text, created timestamptz, modified timestamptz, frontmatter text, base jsonb, status task_status)
RETURNING id, slug;

-- name: UpdateTasksFromFiles :exec
-- Authored fields only (C07). A body that is NULL stays.
UPDATE tasks t SET
    name = r.name, path = r.path, scope = r.scope, risk = r.risk, impact = r.impact, level = r.level, priority = r.priority, tags = coalesce(r.tags, '{}'), assignee = r.assignee, due = r.due,
    body = coalesce(r.body, t.body), file_created_at = r.created, file_modified_at = r.modified, frontmatter = r.frontmatter, base = r.base, archived_at = CASE WHEN r.archived THEN t.archived_at END
FROM jsonb_to_recordset(@tasks::jsonb) AS r(id uuid, name text, path text, scope task_scope, risk task_risk, impact task_impact, level task_level, priority task_priority,
     tags text[], assignee text, due text, body text, created timestamptz, modified timestamptz, frontmatter text, base jsonb, archived boolean)
WHERE t.org_id = current_org_id() AND t.project_id = @project_id AND t.id = r.id;

-- name: ArchiveTasks :exec
-- Their files are gone: what comes back is taken up again.
UPDATE tasks SET archived_at = now(), frontmatter = NULL, base = NULL
WHERE org_id = current_org_id() AND project_id = @project_id AND id = ANY (@ids::uuid[]) AND archived_at IS NULL;

-- name: RemoveDependencies :exec
DELETE FROM task_dependencies d
USING (SELECT unnest(@dependent_ids::uuid[]) AS dependent_id, unnest(@prerequisite_ids::uuid[]) AS prerequisite_id) r
WHERE d.org_id = current_org_id() AND d.project_id = @project_id AND d.dependent_task_id = r.dependent_id AND d.depends_on_task_id = r.prerequisite_id;

-- name: AddDependenciesOfTasks :exec
INSERT INTO task_dependencies (org_id, project_id, dependent_task_id, depends_on_task_id)
SELECT current_org_id(), @project_id, unnest(@dependent_ids::uuid[]), unnest(@prerequisite_ids::uuid[])
ON CONFLICT (org_id, project_id, dependent_task_id, depends_on_task_id) DO NOTHING;

-- name: ListTaskFiles :many
-- What pull writes: tasks in use, in the order of their slugs.
SELECT t.id, t.slug, t.name, t.path, t.status, t.scope, t.risk, t.impact, t.level, t.priority, t.tags, t.assignee, t.due, t.body, t.file_created_at, t.file_modified_at, t.frontmatter, t.base, t.depends_on
FROM task_details t
WHERE t.org_id = current_org_id() AND t.project_id = @project_id AND t.slug > @after_slug AND t.archived_at IS NULL
ORDER BY t.slug
LIMIT @row_limit;


-- The graph -------------------------------------------------------------------------------------------------------

-- name: ListTaskGraph :many
-- All tasks in use, in the order in which they would be claimed.
SELECT id, slug, name, path, status, scope, risk, impact, unmet_count
FROM tasks
WHERE org_id = current_org_id() AND project_id = @project_id AND archived_at IS NULL
ORDER BY priority_rank DESC, downstream_count DESC, id;
