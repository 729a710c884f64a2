-- name: SearchSessions :many
-- A row for each of a session's best matches, the best session first.
SELECT sqlc.embed(s), h.rank::real AS rank, h.matches::bigint AS matches, e.part_id, p.message_id, p.type, e.created_at,
       search_snippet(search_chunk(CASE WHEN e.part_id IS NULL THEN s.title ELSE part_text(p.data) END, e.chunk), @query::text)::text AS snippet
FROM search_sessions(@query::text, sqlc.narg('project_id')::uuid, sqlc.narg('role_name')::text, sqlc.narg('account_id')::uuid, sqlc.narg('archived')::boolean,
                     sqlc.narg('since')::timestamptz, sqlc.narg('until')::timestamptz, sqlc.narg('below_rank')::real, sqlc.narg('below_id')::uuid, @row_limit::integer) h(session_id, rank, matches, entry_ids)
JOIN sessions s ON s.org_id = current_org_id() AND s.id = h.session_id
CROSS JOIN LATERAL unnest(h.entry_ids) WITH ORDINALITY u(id, n)
JOIN search_entries e ON e.org_id = current_org_id() AND e.id = u.id
LEFT JOIN parts p ON p.org_id = e.org_id AND p.id = e.part_id
ORDER BY h.rank DESC, h.session_id DESC, u.n;
