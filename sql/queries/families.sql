-- name: ArchiveSession :one
WITH RECURSIVE tree AS (
    SELECT s.id FROM sessions s WHERE s.org_id = current_org_id() AND s.id = @id
    UNION ALL
    SELECT c.id FROM tree t JOIN sessions c ON c.org_id = current_org_id() AND c.parent_id = t.id WHERE @descendants::boolean
), changed AS (
    UPDATE sessions s SET archived_at = CASE WHEN @archived::boolean THEN coalesce(s.archived_at, now()) END
    WHERE s.org_id = current_org_id() AND s.id IN (SELECT t.id FROM tree t)
    RETURNING s.*
)
SELECT * FROM changed c WHERE c.id = @id;

-- name: ListChildSessions :many
WITH RECURSIVE tree AS (
    SELECT s.id, 1 AS depth FROM sessions s WHERE s.org_id = current_org_id() AND s.parent_id = @session_id::uuid
    UNION ALL
    SELECT c.id, t.depth + 1 FROM tree t JOIN sessions c ON c.org_id = current_org_id() AND c.parent_id = t.id WHERE @descendants::boolean
), page AS (
    SELECT t.id, t.depth FROM tree t WHERE (t.depth, t.id) > (@after_depth::integer, @after_id::uuid) ORDER BY t.depth, t.id LIMIT @row_limit
)
SELECT p.depth, sqlc.embed(s) FROM page p JOIN sessions s ON s.org_id = current_org_id() AND s.id = p.id
ORDER BY p.depth, p.id;

-- name: GetSessionUsage :many
-- By model and day, in each row how many sessions were counted. A session without usage gives one row of zeros, none gives none.
WITH RECURSIVE tree AS (
    SELECT s.id FROM sessions s WHERE s.org_id = current_org_id() AND s.id = @session_id
    UNION ALL
    SELECT c.id FROM tree t JOIN sessions c ON c.org_id = current_org_id() AND c.parent_id = t.id WHERE @descendants::boolean
), message AS (
    SELECT CASE WHEN jsonb_typeof(m.data -> 'providerID') = 'string' THEN m.data ->> 'providerID' WHEN jsonb_typeof(m.data #> '{model,providerID}') = 'string' THEN m.data #>> '{model,providerID}' ELSE '' END AS provider_id,
           CASE WHEN jsonb_typeof(m.data -> 'modelID') = 'string' THEN m.data ->> 'modelID' WHEN jsonb_typeof(m.data #> '{model,modelID}') = 'string' THEN m.data #>> '{model,modelID}' ELSE '' END AS model_id,
           (m.created_at AT TIME ZONE 'UTC')::date AS day, m.data -> 'tokens' AS tokens, m.data -> 'cost' AS cost
    FROM tree t JOIN messages m ON m.org_id = current_org_id() AND m.session_id = t.id
    WHERE m.role = 'assistant' AND NOT m.metadata ? '_fork'
), usage AS (
    SELECT m.provider_id, m.model_id, m.day, count(*) AS messages,
           sum(usage_number(m.tokens -> 'input'))::bigint AS input, sum(usage_number(m.tokens -> 'output'))::bigint AS output,
           sum(usage_number(m.tokens -> 'reasoning'))::bigint AS reasoning,
           sum(usage_number(m.tokens #> '{cache,read}'))::bigint AS cache_read, sum(usage_number(m.tokens #> '{cache,write}'))::bigint AS cache_write,
           sum(usage_number(m.cost))::double precision AS cost
    FROM message m GROUP BY m.provider_id, m.model_id, m.day
)
SELECT t.sessions, coalesce(u.provider_id, '')::text AS provider_id, coalesce(u.model_id, '')::text AS model_id, coalesce(u.day::text, '')::text AS day, coalesce(u.messages, 0)::bigint AS messages,
       coalesce(u.input, 0)::bigint AS input, coalesce(u.output, 0)::bigint AS output, coalesce(u.reasoning, 0)::bigint AS reasoning,
       coalesce(u.cache_read, 0)::bigint AS cache_read, coalesce(u.cache_write, 0)::bigint AS cache_write, coalesce(u.cost, 0)::double precision AS cost
FROM (SELECT count(*) AS sessions FROM tree) t LEFT JOIN usage u ON true
WHERE t.sessions > 0
ORDER BY u.day, u.provider_id, u.model_id;

-- name: ForkSession :one
-- No row: the session has no such message. The fork's messages follow by CopyMessages.
INSERT INTO sessions (org_id, project_id, fork_of_id, account_id, role_name, slug, title, version, data, raw)
SELECT s.org_id, s.project_id, s.id, current_account_id(), s.role_name, sqlc.narg('slug'), @title, s.version, @data, sqlc.narg('raw')
FROM sessions s
WHERE s.org_id = current_org_id() AND s.id = @session_id
  AND (sqlc.narg('message_id')::uuid IS NULL OR EXISTS (SELECT FROM messages m WHERE m.org_id = s.org_id AND m.session_id = s.id AND m.id = sqlc.narg('message_id')))
RETURNING *;

-- name: CopyMessages :one
-- Ids ascend in the order of the originals'. A message's parentID names another message: in a copy it names that one's copy, in the form that an export gives it.
WITH original AS (
    SELECT m.id, m.role, m.source_id, m.data, m.raw, m.metadata, m.created_at,
           hub_uuidv7_at((extract(epoch FROM statement_timestamp()) * 4096000)::bigint + row_number() OVER (ORDER BY m.id)) AS copy_id
    FROM messages m
    WHERE m.org_id = current_org_id() AND m.session_id = @session_id AND m.id <= @last_id AND (NOT @exclusive::boolean OR m.id < @last_id)
), renamed AS (
    SELECT o.copy_id, to_jsonb(coalesce(o.source_id, 'msg_' || replace(o.id::text, '-', ''))) AS old_name, to_jsonb('msg_' || replace(o.copy_id::text, '-', '')) AS new_name FROM original o
), message AS (
    INSERT INTO messages (org_id, id, session_id, role, data, raw, metadata, created_at)
    SELECT current_org_id(), o.copy_id, @fork_id, o.role,
           CASE WHEN r.new_name IS NULL THEN o.data ELSE jsonb_set(o.data, '{parentID}', r.new_name) END,
           CASE WHEN r.new_name IS NULL THEN o.raw ELSE replace(o.raw, r.old_name::text, r.new_name::text) END,
           o.metadata || jsonb_build_object('_fork', jsonb_build_object('messageId', o.id)), o.created_at
    FROM original o LEFT JOIN renamed r ON r.old_name = o.data -> 'parentID'
    ORDER BY o.copy_id
    RETURNING id
), part AS (
    INSERT INTO parts (org_id, id, session_id, message_id, type, data, raw, metadata, created_at)
    SELECT current_org_id(), hub_uuidv7_at((extract(epoch FROM statement_timestamp()) * 4096000)::bigint + row_number() OVER (ORDER BY o.copy_id, p.id)),
           @fork_id, o.copy_id, p.type, p.content::jsonb, CASE WHEN p.raw IS NOT NULL THEN p.content END, p.metadata, p.created_at
    FROM original o JOIN part_contents p ON p.org_id = current_org_id() AND p.session_id = @session_id AND p.message_id = o.id
    ORDER BY o.copy_id, p.id
    RETURNING id
)
SELECT (SELECT count(*) FROM message) AS messages, (SELECT count(*) FROM part) AS parts;

-- name: ListSessionTreeForExport :many
-- Parents before their children.
WITH RECURSIVE tree AS (
    SELECT s.id, 0 AS depth FROM sessions s WHERE s.org_id = current_org_id() AND s.id = @session_id
    UNION ALL
    SELECT c.id, t.depth + 1 FROM tree t JOIN sessions c ON c.org_id = current_org_id() AND c.parent_id = t.id
)
SELECT s.* FROM tree t JOIN sessions s ON s.org_id = current_org_id() AND s.id = t.id
ORDER BY t.depth, s.id;

-- name: PurgeDeletedSource :exec
SELECT purge_deleted_source(@source, @source_id);
