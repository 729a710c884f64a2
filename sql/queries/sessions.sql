-- name: CreateSession :one
INSERT INTO sessions (org_id, project_id, parent_id, account_id, role_name, slug, title, version, data, raw, metadata)
VALUES (current_org_id(), @project_id, sqlc.narg('parent_id'), current_account_id(), sqlc.narg('role_name'),
        sqlc.narg('slug'), @title, @version, @data, sqlc.narg('raw'), @metadata)
RETURNING *;

-- name: GetSession :one
SELECT * FROM sessions WHERE org_id = current_org_id() AND id = @id;

-- name: ListSessions :many
SELECT * FROM sessions
WHERE org_id = current_org_id()
  AND id < @before_id
  AND (sqlc.narg('project_id')::uuid IS NULL OR project_id = sqlc.narg('project_id'))
  AND (sqlc.narg('parent_id')::uuid IS NULL OR parent_id = sqlc.narg('parent_id'))
  AND (sqlc.narg('role_name')::text IS NULL OR role_name = sqlc.narg('role_name'))
  AND (sqlc.narg('account_id')::uuid IS NULL OR account_id = sqlc.narg('account_id'))
  AND (sqlc.narg('run_state')::text IS NULL OR run_state = sqlc.narg('run_state'))
  AND (sqlc.narg('archived')::boolean IS NULL OR (archived_at IS NOT NULL) = sqlc.narg('archived'))
  AND (sqlc.narg('source_id')::text IS NULL OR source_id = sqlc.narg('source_id'))
ORDER BY id DESC
LIMIT @row_limit;

-- name: UpdateSession :one
UPDATE sessions SET
    role_name = CASE WHEN @set_role_name::boolean THEN sqlc.narg('role_name') ELSE role_name END,
    slug      = coalesce(sqlc.narg('slug'), slug),
    title     = coalesce(sqlc.narg('title'), title),
    run_state = coalesce(sqlc.narg('run_state'), run_state),
    data      = coalesce(sqlc.narg('data'), data),
    raw       = CASE WHEN sqlc.narg('data')::jsonb IS NULL THEN raw ELSE sqlc.narg('raw') END,
    metadata  = jsonb_merge_patch(metadata, sqlc.narg('metadata_patch')::jsonb)
WHERE org_id = current_org_id() AND id = @id
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision)
RETURNING *;

-- name: LockSession :one
SELECT * FROM sessions WHERE org_id = current_org_id() AND id = @id FOR NO KEY UPDATE;

-- name: DeleteSession :many
-- What delete_session() returned, of the session that the caller sees.
WITH session AS MATERIALIZED (
    SELECT s.id FROM sessions s
    WHERE s.org_id = current_org_id() AND s.id = @id
      AND s.revision = coalesce(sqlc.narg('if_match')::integer, s.revision)
    FOR UPDATE
)
SELECT delete_session(s.id, @descendants::boolean)::integer AS deleted FROM session s;

-- name: AppendMessages :many
-- Messages and their parts in one statement. The arrays run in step ('' in raw stands for NULL); part_messages holds the number (from 1) of each part's
-- message. Ids ascend in the order of insertion (C02), so the n-th id belongs to the n-th message.
WITH session AS (
    SELECT s.org_id, s.id FROM sessions s WHERE s.org_id = current_org_id() AND s.id = @session_id FOR NO KEY UPDATE
), message AS (
    INSERT INTO messages (org_id, session_id, role, data, raw, metadata)
    SELECT s.org_id, s.id, i.role, i.data, i.raw, i.metadata
    FROM session s, (
        SELECT unnest(@roles::text[]) AS role, unnest(@data::jsonb[]) AS data, nullif(unnest(@raw::text[]), '') AS raw,
               unnest(@metadata::jsonb[]) AS metadata, generate_subscripts(@roles::text[], 1) AS n) i
    ORDER BY i.n
    RETURNING org_id, id, session_id, revision, created_at, updated_at
), numbered AS (
    SELECT m.*, row_number() OVER (ORDER BY m.id) AS n FROM message m
), part AS (
    INSERT INTO parts (org_id, session_id, message_id, type, data, raw, metadata)
    SELECT m.org_id, m.session_id, m.id, i.type, i.data, i.raw, i.metadata
    FROM numbered m JOIN (
        SELECT unnest(@part_messages::integer[]) AS n, unnest(@part_types::text[]) AS type, unnest(@part_data::jsonb[]) AS data,
               nullif(unnest(@part_raw::text[]), '') AS raw, unnest(@part_metadata::jsonb[]) AS metadata,
               generate_subscripts(@part_messages::integer[], 1) AS k) i ON i.n = m.n
    ORDER BY i.k
    RETURNING id, message_id
), ids AS (
    SELECT p.message_id, array_agg(p.id ORDER BY p.id) AS part_ids FROM part p GROUP BY p.message_id
)
SELECT m.id, m.revision, m.created_at, m.updated_at, coalesce(i.part_ids, '{}')::uuid[] AS part_ids
FROM numbered m LEFT JOIN ids i ON i.message_id = m.id
ORDER BY m.n;

-- name: ListMessages :many
-- Messages and their parts as rows of one shape: a message (part_id zero, kind its role) before its parts (kind their type). In a summary a
-- long part's data is neither sent nor read.
WITH page AS (
    SELECT m.* FROM messages m
    WHERE m.org_id = current_org_id() AND m.session_id = @session_id AND m.id > @after_id
    ORDER BY m.id
    LIMIT @row_limit
)
SELECT m.id AS message_id, '00000000-0000-0000-0000-000000000000'::uuid AS part_id, m.role AS kind, m.source_id,
       coalesce(m.raw, m.data::text)::text AS data, false AS truncated, m.metadata, m.revision, m.created_at, m.updated_at
FROM page m
UNION ALL
SELECT p.message_id, p.id, p.type, p.source_id, CASE WHEN @summary::boolean AND p.summary IS NOT NULL THEN p.summary::text ELSE p.content END,
       @summary::boolean AND p.summary IS NOT NULL, p.metadata, p.revision, p.created_at, p.updated_at
FROM page m JOIN part_contents p ON p.org_id = m.org_id AND p.session_id = m.session_id AND p.message_id = m.id
ORDER BY message_id, part_id;

-- name: GetMessage :many
-- As ListMessages, for one.
SELECT m.id AS message_id, '00000000-0000-0000-0000-000000000000'::uuid AS part_id, m.role AS kind, m.source_id,
       coalesce(m.raw, m.data::text)::text AS data, false AS truncated, m.metadata, m.revision, m.created_at, m.updated_at
FROM messages m
WHERE m.org_id = current_org_id() AND m.session_id = @session_id AND m.id = @message_id
UNION ALL
SELECT p.message_id, p.id, p.type, p.source_id, CASE WHEN @summary::boolean AND p.summary IS NOT NULL THEN p.summary::text ELSE p.content END,
       @summary::boolean AND p.summary IS NOT NULL, p.metadata, p.revision, p.created_at, p.updated_at
FROM part_contents p
WHERE p.org_id = current_org_id() AND p.session_id = @session_id AND p.message_id = @message_id
ORDER BY message_id, part_id;

-- name: AppendParts :many
-- The arrays run in step, as in AppendMessages; ids ascend in the order of insertion (C02).
WITH session AS (
    SELECT s.org_id, s.id FROM sessions s WHERE s.org_id = current_org_id() AND s.id = @session_id FOR NO KEY UPDATE
)
INSERT INTO parts (org_id, session_id, message_id, type, data, raw, metadata)
SELECT s.org_id, s.id, @message_id, i.type, i.data, i.raw, i.metadata
FROM session s, (
    SELECT unnest(@types::text[]) AS type, unnest(@data::jsonb[]) AS data, nullif(unnest(@raw::text[]), '') AS raw,
           unnest(@metadata::jsonb[]) AS metadata, generate_subscripts(@types::text[], 1) AS n) i
ORDER BY i.n
RETURNING id, revision, created_at, updated_at;

-- name: ListParts :many
SELECT p.message_id, p.id AS part_id, p.type AS kind, p.source_id,
       CASE WHEN @summary::boolean AND p.summary IS NOT NULL THEN p.summary::text ELSE p.content END::text AS data,
       (@summary::boolean AND p.summary IS NOT NULL)::boolean AS truncated, p.metadata, p.revision, p.created_at, p.updated_at
FROM part_contents p
WHERE p.org_id = current_org_id() AND p.session_id = @session_id AND p.id > @after_id
ORDER BY p.id
LIMIT @row_limit;

-- name: ListPartsByType :many
-- As ListParts, by an index of its own.
SELECT p.message_id, p.id AS part_id, p.type AS kind, p.source_id,
       CASE WHEN @summary::boolean AND p.summary IS NOT NULL THEN p.summary::text ELSE p.content END::text AS data,
       (@summary::boolean AND p.summary IS NOT NULL)::boolean AS truncated, p.metadata, p.revision, p.created_at, p.updated_at
FROM part_contents p
WHERE p.org_id = current_org_id() AND p.session_id = @session_id AND p.type = @type AND p.id > @after_id
ORDER BY p.id
LIMIT @row_limit;

-- name: GetPart :one
SELECT p.message_id, p.id AS part_id, p.type AS kind, p.source_id,
       CASE WHEN @summary::boolean AND p.summary IS NOT NULL THEN p.summary::text ELSE p.content END::text AS data,
       (@summary::boolean AND p.summary IS NOT NULL)::boolean AS truncated, p.metadata, p.revision, p.created_at, p.updated_at
FROM part_contents p
WHERE p.org_id = current_org_id() AND p.session_id = @session_id AND p.id = @id;

-- name: LockPart :one
-- A statement of its own: what has streamed in until the lock was had, only the next statement sees.
SELECT type FROM parts WHERE org_id = current_org_id() AND session_id = @session_id AND id = @id FOR NO KEY UPDATE;

-- name: UpdatePart :execrows
UPDATE parts SET
    data     = coalesce(sqlc.narg('data'), data),
    raw      = CASE WHEN sqlc.narg('data')::jsonb IS NULL THEN raw ELSE sqlc.narg('raw') END,
    metadata = jsonb_merge_patch(metadata, sqlc.narg('metadata_patch')::jsonb)
WHERE org_id = current_org_id() AND session_id = @session_id AND id = @id
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision);

-- name: AppendPartDelta :one
INSERT INTO part_deltas (org_id, part_id, start_offset, text)
SELECT p.org_id, p.id, @start_offset, @text::text FROM parts p
WHERE p.org_id = current_org_id() AND p.session_id = @session_id AND p.id = @id
RETURNING end_offset;

-- name: GetGrowingText :one
-- The text that deltas are added to, escaped.
SELECT coalesce(p.content::jsonb #>> growing_text_path(p.type, p.data), '')::text AS text FROM part_contents p
WHERE p.org_id = current_org_id() AND p.session_id = @session_id AND p.id = @id;


-- name: DeleteMessage :execrows
DELETE FROM messages
WHERE org_id = current_org_id() AND session_id = @session_id AND id = @message_id
  AND revision = coalesce(sqlc.narg('if_match')::integer, revision);


-- Import and export ------------------------------------------------------------------------------------------------

-- name: RegisterImportedRoles :exec
INSERT INTO roles (org_id, name, origin)
SELECT current_org_id(), unnest(@names::text[]), 'import'
ON CONFLICT (org_id, name) DO NOTHING;

-- name: ImportSession :one
-- No row: the hub holds a later export. What was changed here since (title, role, archiving) stays unless the source changed it too.
-- Naming another project than the session's is refused by sessions_project_immutable.
INSERT INTO sessions AS s (org_id, id, project_id, account_id, role_name, title, last_activity_at, archived_at,
                      source, source_id, source_parent_id, source_updated_at, data, raw, metadata, created_at)
VALUES (current_org_id(), @id, @project_id, current_account_id(), sqlc.narg('role_name'), @title, @source_updated_at::timestamptz, sqlc.narg('archived_at'),
        @source::text, @source_id::text, sqlc.narg('source_parent_id'), @source_updated_at::timestamptz, @data, sqlc.narg('raw'), @metadata, @created_at)
ON CONFLICT (org_id, source, source_id) DO UPDATE SET
    project_id        = excluded.project_id,
    parent_id         = coalesce(s.parent_id, excluded.parent_id),
    role_name         = CASE WHEN s.data -> 'agent' IS DISTINCT FROM excluded.data -> 'agent' THEN excluded.role_name ELSE s.role_name END,
    title             = CASE WHEN s.data -> 'title' IS DISTINCT FROM excluded.data -> 'title' THEN excluded.title ELSE s.title END,
    archived_at       = CASE WHEN s.data #> '{time,archived}' IS DISTINCT FROM excluded.data #> '{time,archived}' THEN excluded.archived_at ELSE s.archived_at END,
    last_activity_at  = greatest(s.last_activity_at, excluded.last_activity_at),
    source_parent_id  = excluded.source_parent_id,
    source_updated_at = excluded.source_updated_at,
    data              = excluded.data,
    raw               = excluded.raw,
    metadata          = s.metadata || excluded.metadata
WHERE s.source_updated_at <= excluded.source_updated_at
RETURNING id, (xmax = 0)::boolean AS created,
    (revision > coalesce((SELECT o.revision FROM sessions o WHERE o.org_id = current_org_id() AND o.source = @source::text AND o.source_id = @source_id::text), 1))::boolean AS changed;

-- name: GetSessionBySource :one
SELECT * FROM sessions WHERE org_id = current_org_id() AND source = @source::text AND source_id = @source_id::text;

-- name: ImportMessages :many
-- Only new and changed rows are returned (changed by their text: jsonb takes 1.0 and 1.00 for equal). A message of another session is refused by messages_session_immutable.
INSERT INTO messages AS m (org_id, session_id, id, source, source_id, source_position, role, data, raw, metadata, created_at)
SELECT current_org_id(), @session_id, i.id, @source::text, i.source_id, i.source_position, i.role, i.data, i.raw, i.metadata, i.created_at
FROM (SELECT unnest(@ids::uuid[]) AS id, unnest(@source_ids::text[]) AS source_id, unnest(@source_positions::integer[]) AS source_position,
             unnest(@roles::text[]) AS role, unnest(@data::jsonb[]) AS data, nullif(unnest(@raw::text[]), '') AS raw,
             unnest(@metadata::jsonb[]) AS metadata, unnest(@created_at::timestamptz[]) AS created_at) i
ON CONFLICT (org_id, source, source_id) DO UPDATE SET
    session_id = excluded.session_id, source_position = excluded.source_position, role = excluded.role,
    data = excluded.data, raw = excluded.raw, metadata = excluded.metadata
WHERE (m.session_id, m.source_position, m.role, m.data::text, m.raw, m.metadata)
    IS DISTINCT FROM (excluded.session_id, excluded.source_position, excluded.role, excluded.data::text, excluded.raw, excluded.metadata)
RETURNING (xmax = 0)::boolean AS created;

-- name: ListBornMessages :many
-- The messages that were born here, in a session that may be imported.
SELECT id FROM messages
WHERE org_id = current_org_id() AND session_id = @session_id AND source_id IS NULL;

-- name: ListImportedMessages :many
-- The hub's ids of these messages: one that is here already keeps its id.
SELECT id, source_id::text AS source_id FROM messages
WHERE org_id = current_org_id() AND source = @source::text AND source_id = ANY (@source_ids::text[]);

-- name: ImportParts :many
-- Only new and changed rows are returned. A part of another message is refused by parts_session_immutable.
INSERT INTO parts AS p (org_id, session_id, message_id, id, source, source_id, source_position, type, data, raw, metadata, created_at)
SELECT current_org_id(), @session_id, i.message_id, i.id, @source::text, i.source_id, i.source_position, i.type, i.data, i.raw, i.metadata, i.created_at
FROM (SELECT unnest(@message_ids::uuid[]) AS message_id, unnest(@ids::uuid[]) AS id, unnest(@source_ids::text[]) AS source_id,
             unnest(@source_positions::integer[]) AS source_position, unnest(@types::text[]) AS type, unnest(@data::jsonb[]) AS data,
             nullif(unnest(@raw::text[]), '') AS raw, unnest(@metadata::jsonb[]) AS metadata, unnest(@created_at::timestamptz[]) AS created_at) i
ON CONFLICT (org_id, source, source_id) DO UPDATE SET
    session_id = excluded.session_id, message_id = excluded.message_id, source_position = excluded.source_position, type = excluded.type,
    data = excluded.data, raw = excluded.raw, metadata = excluded.metadata
WHERE (p.session_id, p.message_id, p.source_position, p.type, p.data::text, p.raw, p.metadata)
    IS DISTINCT FROM (excluded.session_id, excluded.message_id, excluded.source_position, excluded.type, excluded.data::text, excluded.raw, excluded.metadata)
RETURNING (xmax = 0)::boolean AS created;

-- name: DeletePartsMissingFromImport :execrows
-- What the source has removed from these messages since.
DELETE FROM parts
WHERE org_id = current_org_id() AND session_id = @session_id AND message_id = ANY (@message_ids::uuid[])
  AND source = @source::text AND source_id <> ALL (coalesce(@source_ids::text[], '{}'));

-- name: DeleteMessagesMissingFromImport :one
WITH deleted AS (
    DELETE FROM messages m
    WHERE m.org_id = current_org_id() AND m.session_id = @session_id AND m.source = @source::text AND m.source_id <> ALL (coalesce(@source_ids::text[], '{}'))
    RETURNING m.org_id, m.session_id, m.id
)
SELECT (SELECT count(*) FROM deleted) AS messages,
       (SELECT count(*) FROM deleted d JOIN parts p ON p.org_id = d.org_id AND p.session_id = d.session_id AND p.message_id = d.id) AS parts;

-- name: ListImportedIDs :many
-- Where these ids of a source are: what to point at when an import was refused.
SELECT m.source_id::text AS source_id, s.source_id AS session_source_id, NULL::text AS message_source_id
FROM messages m JOIN sessions s ON s.org_id = m.org_id AND s.id = m.session_id
WHERE m.org_id = current_org_id() AND m.source = @source::text AND m.source_id = ANY (@message_source_ids::text[])
UNION ALL
SELECT p.source_id, s.source_id, m.source_id
FROM parts p
JOIN sessions s ON s.org_id = p.org_id AND s.id = p.session_id
JOIN messages m ON m.org_id = p.org_id AND m.id = p.message_id
WHERE p.org_id = current_org_id() AND p.source = @source::text AND p.source_id = ANY (@part_source_ids::text[]);

-- name: ListMessageIDsForExport :many
SELECT id FROM messages
WHERE org_id = current_org_id() AND session_id = @session_id
ORDER BY source_position NULLS LAST, id;

-- name: ListMessagesForExport :many
-- As ListMessages, for the given messages, each with its parts in the source's order.
SELECT m.id AS message_id, '00000000-0000-0000-0000-000000000000'::uuid AS part_id, m.role AS kind, m.source_id,
       coalesce(m.raw, m.data::text)::text AS data, m.metadata, m.created_at, (-1)::integer AS place
FROM messages m
WHERE m.org_id = current_org_id() AND m.session_id = @session_id AND m.id = ANY (@ids::uuid[])
UNION ALL
SELECT p.message_id, p.id, p.type, p.source_id, p.content, p.metadata, p.created_at, coalesce(p.source_position, 2147483647)
FROM part_contents p
WHERE p.org_id = current_org_id() AND p.session_id = @session_id AND p.message_id = ANY (@ids::uuid[])
ORDER BY message_id, place, part_id;
