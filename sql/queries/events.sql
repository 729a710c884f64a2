-- name: GetEventHead :one
-- How far the caller's feed has come, where what is kept of it begins, and which projects the key is limited to.
SELECT coalesce(h.last_position, 0)::bigint AS last_position, coalesce(h.purged_position, 0)::bigint AS purged_position,
       coalesce('only ' || array_to_string(current_project_ids(), ' '), '')::text AS projects
FROM (SELECT current_org_id() AS org_id) o LEFT JOIN event_heads h ON h.org_id = o.org_id;

-- name: ListEvents :many
SELECT position, kind, action, row_id, row_revision, project_id, session_id, text_offset, changed_at FROM events
WHERE org_id = current_org_id() AND position > @after_position
ORDER BY position
LIMIT @row_limit;
