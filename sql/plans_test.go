package sql_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// crowd is enough rows for PostgreSQL to prefer indexes where it can: 20 organisations with 3,000 sessions, and in @session
// 2,000 messages with 10,000 parts; 4,000 accounts, each a member somewhere, with a key; 40,000 audit entries and 4,000 kept answers.
const crowd = `
	INSERT INTO accounts (kind, display_name) SELECT 'llm', 'crowd ' || n FROM generate_series(1, 18) n;
	BEGIN;
	SET CONSTRAINTS ALL DEFERRED;
	INSERT INTO organizations (slug, name, owner_id) SELECT 'crowd-' || row_number() OVER (), 'Crowd', id FROM accounts WHERE display_name LIKE 'crowd %';
	INSERT INTO organization_members (org_id, account_id, membership_level) SELECT id, owner_id, 'owner' FROM organizations WHERE slug LIKE 'crowd-%';
	COMMIT;
	INSERT INTO organization_members (org_id, account_id) SELECT @org, id FROM accounts WHERE display_name LIKE 'crowd %';
	INSERT INTO projects (org_id, slug, name) SELECT o.id, 'p-' || n, 'P' FROM organizations o, generate_series(1, 20) n;
	INSERT INTO roles (org_id, name) SELECT o.id, 'role-' || n FROM organizations o, generate_series(1, 20) n;
	INSERT INTO sessions (org_id, project_id, account_id, role_name, title, source, source_id, source_updated_at, archived_at)
		SELECT o.id, p.id, m.account_id, 'role-' || 1 + n % 20, 'A session', 'test', 'crowd-' || n, now(), CASE WHEN n % 10 > 0 THEN now() END
		FROM organizations o
		JOIN LATERAL (SELECT array_agg(id) AS ids FROM projects WHERE org_id = o.id AND slug LIKE 'p-%') ps ON true
		JOIN LATERAL (SELECT array_agg(account_id) AS ids FROM organization_members WHERE org_id = o.id) ms ON true,
		generate_series(1, 150) n, LATERAL (SELECT ps.ids[1 + n % 20] AS id) p, LATERAL (SELECT ms.ids[1 + n % cardinality(ms.ids)] AS account_id) m;
	UPDATE sessions s SET parent_id = (SELECT p.id FROM sessions p WHERE p.org_id = s.org_id AND p.source_id = 'crowd-1')
		WHERE source_id ~ '^crowd-.[05]$';
	INSERT INTO messages (org_id, session_id, role, source, source_id, source_position)
		SELECT s.org_id, s.id, 'user', s.source, s.source_id, 0 FROM sessions s WHERE s.source_id LIKE 'crowd-%';
	INSERT INTO parts (org_id, session_id, message_id, type, source, source_id, source_position)
		SELECT m.org_id, m.session_id, m.id, 'text', m.source, m.source_id, 0 FROM messages m WHERE m.source_id LIKE 'crowd-%';
	SET session_replication_role = replica; -- nothing of these goes on record
	INSERT INTO clients (org_id, type, schema_version, name, valid, validated_at)
		SELECT o.id, CASE WHEN n % 20 = 0 THEN 'webhook' ELSE 'http-api' END, 1, 'c-' || n, n % 50 > 0, now() FROM organizations o, generate_series(1, 200) n;
	INSERT INTO client_secrets (org_id, client_id, name, key_version, ciphertext)
		SELECT c.org_id, c.id, 's-' || n, CASE WHEN c.name = 'c-7' THEN 1 ELSE 2 END, sha256(n::text::bytea) FROM clients c, generate_series(1, 5) n;
	INSERT INTO secret_rotations (target_version, total, status, ended_at) SELECT 1, 0, 'completed', now() FROM generate_series(1, 500);
	SET session_replication_role = origin;
	INSERT INTO messages (org_id, session_id, role) SELECT @org, @session, 'assistant' FROM generate_series(1, 2000);
	INSERT INTO parts (org_id, session_id, message_id, type)
		SELECT m.org_id, m.session_id, m.id, CASE WHEN n = 1 THEN 'tool' ELSE 'text' END
		FROM messages m, generate_series(1, 5) n WHERE m.session_id = @session;
	INSERT INTO part_deltas (org_id, part_id, start_offset, text) SELECT org_id, id, 0, 'x' FROM parts WHERE source_id LIKE 'crowd-%';

	-- Without triggers: the chains of this crowd fit nothing.
	SET session_replication_role = replica;
	CREATE TEMPORARY TABLE numbered AS SELECT id AS org_id, row_number() OVER (ORDER BY id) - 1 AS place FROM organizations;
	INSERT INTO accounts (kind, display_name, home_org_id, email)
		SELECT CASE WHEN n % 20 = 7 THEN 'llm' ELSE 'human' END, initcap(translate(md5(n::text), '0123456789', 'ghijklmnop')) || ' ' || n, o.org_id, 'crowd-' || n || '@example'
		FROM generate_series(1, 4000) n JOIN numbered o ON o.place = n % 20;
	UPDATE accounts SET status = 'suspended' WHERE display_name ~ '77$';
	INSERT INTO organization_members (org_id, account_id, membership_level) SELECT home_org_id, id, CASE WHEN display_name ~ '50$' THEN 'admin' ELSE 'member' END FROM accounts WHERE email LIKE 'crowd-%';
	INSERT INTO api_keys (org_id, account_id, name, key_hash, tags) SELECT home_org_id, id, 'crowd', sha256(convert_to(id::text, 'UTF8')), ARRAY['tag-' || right('0' || split_part(display_name, ' ', 2), 2)] FROM accounts WHERE email LIKE 'crowd-%';
	INSERT INTO idempotency_keys (org_id, account_id, key, request, status) SELECT home_org_id, id, 'crowd', sha256('x'), 200 FROM accounts WHERE email LIKE 'crowd-%';
	INSERT INTO audit_logs (chain_id, position, org_id, owner_id, actor_source, database_user, api_key_id, acting_session_id, action, target_type, target_id, previous_hash, hash, created_at)
		SELECT o.org_id, 100000 + n, o.org_id, k.account_id, 'api', 'hub_app', k.id, s.id, CASE WHEN n % 300 = 7 THEN 'key.revoke' ELSE 'role.update' END, CASE WHEN n % 300 = 7 THEN 'key' ELSE 'role' END, k.id, sha256('x'), sha256('x'), now() + n * interval '1 second'
		FROM numbered o
		JOIN LATERAL (SELECT array_agg(id) AS ids, array_agg(account_id) AS accounts FROM api_keys WHERE org_id = o.org_id) ks ON true
		JOIN LATERAL (SELECT array_agg(id) AS ids FROM sessions WHERE org_id = o.org_id) ss ON true,
		generate_series(1, 2000) n, LATERAL (SELECT ks.ids[1 + n % cardinality(ks.ids)] AS id, ks.accounts[1 + n % cardinality(ks.ids)] AS account_id) k, LATERAL (SELECT ss.ids[1 + n % cardinality(ss.ids)] AS id) s;
	SET session_replication_role = origin;
	INSERT INTO tasks (org_id, project_id, slug, name, path) SELECT p.org_id, p.id, 'crowd/' || n, 't', 'g' || n % 50 || '/' || n || '.md' FROM projects p, generate_series(1, 20) n;
	INSERT INTO tasks (org_id, project_id, slug, name, path, priority) SELECT @org, @project, 'many/' || n, 't', 'g' || n % 50 || '/' || n || '.md', 'low' FROM generate_series(1, 3000) n;
	INSERT INTO task_dependencies (org_id, project_id, dependent_task_id, depends_on_task_id)
		SELECT a.org_id, a.project_id, a.id, b.id FROM tasks a JOIN tasks b ON (b.org_id, b.project_id) = (a.org_id, a.project_id) AND b.slug = 'crowd/1' WHERE a.slug ~ '^crowd/[2-9]$';
	INSERT INTO task_notes (org_id, project_id, task_id, body) SELECT t.org_id, t.project_id, t.id, 'n' FROM tasks t WHERE t.slug LIKE 'crowd/%' AND t.org_id = @org;
	UPDATE tasks SET status = 'blocked' WHERE slug LIKE 'crowd/%'; UPDATE tasks SET status = 'pending' WHERE slug LIKE 'crowd/%';
	INSERT INTO mappings (org_id, kind, project_id, session_id, parent_session_id) SELECT s.org_id, 'delegation', s.project_id, s.id, p.id FROM sessions s
		JOIN LATERAL (SELECT id FROM sessions x WHERE x.org_id = s.org_id AND x.project_id = s.project_id AND x.id <> s.id AND x.archived_at IS NULL ORDER BY id LIMIT 1) p ON true WHERE s.archived_at IS NULL AND s.source_id LIKE 'crowd-%';
	INSERT INTO workspaces (org_id, project_id, name, path) SELECT p.org_id, p.id, 'crowd-' || n, '/srv' FROM projects p, generate_series(1, 20) n;
	SET session_replication_role = replica;
	INSERT INTO detections (org_id, project_id, session_id, anomaly_type, severity, status, resolution, acknowledged_at, resolved_at)
		SELECT s.org_id, s.project_id, s.id, CASE n WHEN 1 THEN 'SESSION_STALL' ELSE 'HIGH_ERROR_COUNT' END, CASE WHEN s.source_id ~ '77$' THEN 'critical' ELSE 'low' END,
		       CASE WHEN s.source_id ~ '33$' THEN 'acknowledged' ELSE 'resolved' END, CASE WHEN s.source_id !~ '33$' THEN 'fixed' END, now(), CASE WHEN s.source_id !~ '33$' THEN now() END
		FROM sessions s, generate_series(1, 2) n WHERE s.source_id LIKE 'crowd-%';
	SET session_replication_role = origin;
	BEGIN; COMMIT; -- of all that: what has not committed gets no number
	SELECT number_events(@new, 1000000);
	SET session_replication_role = replica;
	INSERT INTO spokes (org_id, name, account_id, lease_expires_at) SELECT o.id, 'crowd-' || n, o.owner_id, now() + interval '1 day' FROM organizations o, generate_series(1, 60) n;
	INSERT INTO operation_specs (org_id, spoke_id, namespace, name, kind) SELECT s.org_id, s.id, 'crowd', 'op-' || n, 'query' FROM spokes s, generate_series(1, 10) n WHERE s.name LIKE 'crowd-%';
	INSERT INTO calls (org_id, request_id, routed, operation, status, session_id, caller_account_id, spoke_id, started_at, ended_at, ended_by, deadline_at)
		SELECT s.org_id, s.id::text || '/' || n, true, 'crowd.op-' || n, 'completed', NULL, s.account_id, s.id, now(), now(), 'spoke', now() FROM spokes s, generate_series(1, 10) n WHERE s.name LIKE 'crowd-%';
	UPDATE calls c SET parent_id = (SELECT p.id FROM calls p WHERE p.org_id = c.org_id AND p.operation = 'crowd.op-1' ORDER BY p.id LIMIT 1) WHERE operation = 'crowd.op-2';
	INSERT INTO call_edge_rows (org_id, source_call_id, target_call_id, type) SELECT a.org_id, a.id, b.id, 'depends_on' FROM calls a JOIN calls b ON a.org_id = b.org_id AND a.spoke_id = b.spoke_id AND b.operation = 'crowd.op-3' WHERE a.operation = 'crowd.op-4';
	INSERT INTO call_payloads (org_id, call_id, direction, key_version, ciphertext) SELECT org_id, id, 'output', 1, 'x' FROM calls WHERE operation = 'crowd.op-5';
	SET session_replication_role = origin;
	ANALYZE;`

// arguments are what the queries' parameters are, by name; NULL for the filters that are not asked for.
var arguments = map[string]string{
	"after_slug": "''", "row_limit": "50", "before_id": "'ffffffff-ffff-7fff-bfff-ffffffffffff'", "after_id": "@zero", "id": "@session", "session_id": "@session",
	"message_id": "@message", "ids": "ARRAY[@message, @second_message]::uuid[]", "message_ids": "ARRAY[@message, @second_message]::uuid[]", "if_match": "1",
	"slug": "NULL", "archived": "NULL", "project_id": "NULL", "parent_id": "NULL", "role_name": "NULL", "account_id": "NULL", "run_state": "NULL", "source_id": "NULL",
	"name": "'x'", "description": "'x'", "title": "'x'", "version": "'1'", "data": "'{}'", "raw": "NULL", "metadata": "'{}'", "data_patch": "NULL", "metadata_patch": "NULL",
	"set_role_name": "false", "names": "'{x}'", "source": "'test'", "source_parent_id": "NULL", "source_updated_at": "now()", "archived_at": "NULL", "created_at": "now()",
	"roles": "'{user,user}'", "part_messages": "'{1,2}'", "part_types": "'{text,tool}'", "part_data": "'{\"{}\",\"{}\"}'", "part_raw": "'{\"\",\"\"}'", "part_metadata": "'{\"{}\",\"{}\"}'",
	"after_name": "''", "type": "NULL", "valid": "NULL", "config": "'{}'", "config_patch": "'{}'", "schema_version": "1", "client_id": "@client", "bound_org_id": "@org",
	"key_version": "2", "ciphertext": "sha256('x')", "old_ciphertext": "sha256('a')", "target_version": "2", "rotated": "1", "failed": "0", "held": "'{1}'", "versions": "'{1}'",
	"fingerprints": "ARRAY[sha256('1')]", "schema_versions": "'{1}'", "schemas": "'{\"{}\"}'", "configs": "'{\"{}\"}'", "old_ciphertexts": "ARRAY[sha256('a')]", "ciphertexts": "ARRAY[sha256('x')]",
	"after_position": "0", "holder": "@new", "summary": "false", "start_offset": "5",
	"query": "'word'", "below_rank": "NULL", "below_id": "NULL", "origin": "NULL", "file_set": "NULL", "prompt": "'x'", "descriptions": "'{x}'", "prompts": "'{x}'", "descendants": "true", "after_depth": "0", "fork_id": "@child", "last_id": "@message", "exclusive": "false",
	"kind": "NULL", "status": "NULL", "display_name": "NULL", "email": "NULL", "set_email": "false", "access_level": "NULL", "membership_level": "NULL", "text": "'crow 17'", "owner_id": "NULL",
	"key_id": "@new", "key_hash": "sha256('x')", "scopes": "'{}'", "resources": "'{}'", "tags": "'{}'", "tag": "NULL", "expires_at": "NULL", "set_expires_at": "false", "enabled": "true", "made_id": "@new", "grace_seconds": "60",
	"platform": "false", "before": "NULL", "after": "'-infinity'", "since": "NULL", "until": "NULL", "action": "NULL", "target_id": "NULL", "target_type": "NULL", "api_key_id": "NULL", "acting_session_id": "NULL",
	"audit_days": "NULL", "set_audit_days": "false", "session_days": "NULL", "set_session_days": "false", "key": "'key'", "request": "sha256('x')", "headers": "'{}'", "body": "NULL",
	"scope": "NULL", "risk": "NULL", "impact": "NULL", "level": "NULL", "priority": "NULL", "assignee": "NULL", "due": "NULL", "path": "'x'", "path_prefix": "NULL", "ready": "NULL", "max_risk": "NULL",
	"set_scope": "false", "set_risk": "false", "set_impact": "false", "set_level": "false", "set_priority": "false", "set_assignee": "false", "set_due": "false", "slugs": "'{a}'", "reason": "''",
	"depends_on_task_id": "@task", "mapping_id": "@mapping", "lease_seconds": "300", "task_id": "NULL", "parent_session_id": "NULL", "dependent_ids": "ARRAY[@waiting_task]::uuid[]", "prerequisite_ids": "ARRAY[@task]::uuid[]",
	"org_ids": "ARRAY[@org]::uuid[]", "key_ids": "ARRAY[@key]::uuid[]", "times": "ARRAY[now()]",
	"spec_id": "@spec", "spec_revision": "1", "pinned": "false", "request_id": "NULL", "timeout_seconds": "60", "input": "'{}'", "output": "'{}'", "error": "'{}'", "error_code": "'x'",
	"max_calls": "5", "max_bytes": "1000", "wait_seconds": "0", "call_id": "@call", "operation": "NULL", "caller_account_id": "NULL", "redact_paths": "'{}'",
	"payload_limit": "NULL", "ended_by": "NULL", "started_at": "now()", "ended_at": "NULL", "max_depth": "20", "target_call_ids": "ARRAY[@child_call]::uuid[]", "source_call_id": "@call", "after_source": "@zero", "after_target": "@zero",
	"after_type": "''", "set_call_days": "false", "call_days": "NULL", "set_call_payload_days": "false", "call_payload_days": "NULL", "call_payload_limit": "NULL",
	"severity": "NULL", "anomaly_type": "'PROMPT_INJECTION'", "evidence": "'{}'", "resolution": "'fixed'", "set_stall_minutes": "false", "stall_minutes": "NULL", "set_error_count": "false", "error_count": "NULL", "error_minutes": "NULL",
	"set_model_minutes": "false", "model_minutes": "NULL", "model_baseline_hours": "NULL", "model_turns": "NULL", "model_error_percent": "NULL", "model_latency_percent": "NULL", "set_reported_days": "false", "reported_days": "NULL",
	"workspace_id": "NULL", "branch": "NULL", "set_branch": "false",
	"spoke_id": "@spoke", "epoch": "1", "operations": "'[]'", "namespace": "NULL",
	"source_ids": "'{m1,m2}'", "message_source_ids": "'{m1,m2}'", "part_source_ids": "'{p1,p2}'", "source_positions": "'{0,1}'", "types": "'{text,tool}'",
}

// argumentsOf are those of one query that differ.
var argumentsOf = map[string]map[string]string{
	"AppendMessages":     {"data": `'{"{}","{}"}'`, "raw": `'{"",""}'`, "metadata": `'{"{}","{}"}'`},
	"ImportMessages":     {"data": `'{"{}","{}"}'`, "raw": `'{"",""}'`, "metadata": `'{"{}","{}"}'`, "created_at": "ARRAY[now(), now()]"},
	"ImportParts":        {"data": `'{"{}","{}"}'`, "raw": `'{"",""}'`, "metadata": `'{"{}","{}"}'`, "created_at": "ARRAY[now(), now()]"},
	"ImportSession":      {"source_id": "'x'", "project_id": "@project"},
	"AppendPartDelta":    {"text": "'x'"},
	"ListPartsByType":    {"type": "'tool'"},
	"AppendParts":        {"data": `'{"{}","{}"}'`, "raw": `'{"",""}'`, "metadata": `'{"{}","{}"}'`},
	"CreateSession":      {"project_id": "@project"},
	"CreateProject":      {"slug": "'x'"},
	"SyncRoles":          {"file_set": "'x'", "data": `'{"{}"}'`},
	"ForkSession":        {"message_id": "@message"},
	"PurgeDeletedSource": {"source_id": "'crowd-7'"},
	"EnqueueCall":        {"id": "@new", "session_id": "@session"}, "FindOperation": {"name": "'fs.read'"}, "StepCall": {"id": "@call", "status": "'running'"}, "GetOutputSchema": {"id": "@call"}, "AbortCall": {"id": "@call"},
	"FindWork": {"ids": "ARRAY[@call]::uuid[]"}, "GetCall": {"id": "@call"}, "GetCallByRequest": {"request_id": "'r1'"}, "GetCallTree": {"id": "@call"}, "ListCalls": {"session_id": "NULL", "spoke_id": "NULL"},
	"RecordCall":   {"request_id": "'r2'", "operation": "'x.y'", "status": "'running'", "session_id": "@session", "error": "NULL", "output": "NULL", "error_code": "NULL"},
	"AddCallEdges": {"types": "'{requested_by}'"}, "GetCallStats": {"since": "now() - interval '1 day'", "until": "now()"},
	"LeaveTake":          {"id": "@spoke", "take_expires_at": "'2036-01-01'"},
	"HeartbeatSpoke":     {"id": "@spoke"},
	"DisconnectSpoke":    {"id": "@spoke"},
	"GetSpoke":           {"id": "@spoke"},
	"GetOperation":       {"name": "'fs.read'"},
	"ListOperations":     {"name": "NULL"},
	"GetSessionBySource": {"source_id": "'crowd-7'"},

	"CreateClient":           {"type": "'http-api'", "enabled": "true"},
	"GetClient":              {"id": "@client"},
	"UpdateClient":           {"id": "@client", "enabled": "NULL", "config": "NULL", "schema_version": "NULL"},
	"DeleteClient":           {"id": "@client"},
	"PatchClientConfig":      {"id": "@client"},
	"SetClientsValid":        {"ids": "ARRAY[@client]::uuid[]", "valid": "'{true}'"},
	"PutClientSecret":        {"metadata": "NULL"},
	"GetClientSecret":        {"name": "'token'"},
	"RevealClientSecret":     {"name": "'token'"},
	"DeleteClientSecret":     {"name": "'token'"},
	"ReencryptClientSecret":  {"id": "@secret"},
	"RotateSecrets":          {"ids": "ARRAY[@secret]::uuid[]"},
	"GetSecretRotation":      {"id": "@rotation"},
	"AdvanceSecretRotation":  {"id": "@rotation"},
	"CompleteSecretRotation": {"id": "@rotation"},
	"RemoveEncryptionKey":    {"version": "9"},
	"ListClients":            {"name": "NULL", "enabled": "NULL"},
	"RegisterClientTypes":    {"types": "'{http-api}'"},
	"CreateAccount":          {"kind": "'human'", "display_name": "'x'", "membership_level": "'member'"}, "GetAccount": {"id": "@member"}, "UpdateAccount": {"id": "@member"}, "DeleteAccount": {"id": "@member"},
	"SetAccountStatus": {"id": "@member", "status": "'suspended'"}, "ListOwnedOrganizations": {"owner_id": "@owner"},
	"CreateOrganization": {"slug": "'x'"}, "GetOrganization": {"id": "@org"}, "UpdateOrganization": {"id": "@org"}, "DeleteOrganization": {"id": "@org"}, "TransferOrganization": {"id": "@org", "account_id": "@co_owner"},
	"AddMember": {"account_id": "@nobody", "membership_level": "'member'"}, "GetMember": {"account_id": "@member"}, "UpdateMember": {"account_id": "@member"}, "RemoveMember": {"account_id": "@member"},
	"GetAPIKey": {"id": "@key"}, "UpdateAPIKey": {"id": "@key", "name": "NULL", "scopes": "NULL", "resources": "NULL", "tags": "NULL"}, "RevokeAPIKey": {"id": "@key"}, "SetAPIKeyEnabled": {"id": "@key"}, "RotateAPIKey": {"id": "@key"},
	"RecordIdempotentAnswer": {"status": "200"},

	"GetTask": {"id": "@task"}, "UpdateTask": {"id": "@task", "name": "NULL", "path": "NULL", "tags": "NULL"}, "DeleteTask": {"id": "@task"}, "AddDependencies": {"id": "@task"},
	"AddDependency": {"id": "@task"}, "RemoveDependency": {"id": "@task"}, "ListDependencies": {"id": "@task"}, "AddTaskNote": {"id": "@task", "body": "'x'"},
	"ListTaskNotes": {"id": "@task"}, "GetTaskDocument": {"id": "@task"}, "ListTaskStatusChanges": {"id": "@task"}, "ClaimTask": {"id": "@task"},
	"ExtendClaim": {"id": "@task"}, "EndClaim": {"id": "@task", "status": "'completed'", "task_status": "'completed'"}, "SetTaskAside": {"id": "@task", "from_statuses": "'{pending}'", "to_status": "'blocked'"}, "LockProjectOfTask": {"id": "@task"},
	"ListTasks": {"project_id": "@project"}, "ClaimNextTask": {"project_id": "@project"}, "ListTasksForSync": {"project_id": "@project"}, "ListDependencyEdges": {"project_id": "@project"},
	"ListTaskFiles": {"project_id": "@project"}, "ListTaskGraph": {"project_id": "@project"}, "RemoveDependencies": {"project_id": "@project"}, "AddDependenciesOfTasks": {"project_id": "@project"},
	"ListMappings": {"project_id": "@project", "spoke_id": "NULL"}, "LockProject": {"id": "@project"}, "CreateTask": {"project_id": "@project", "slug": "'x'", "body": "''"}, "LockTasks": {"project_id": "@project", "ids": "ARRAY[@task]::uuid[]"},
	"ArchiveTasks": {"project_id": "@project", "ids": "ARRAY[@task]::uuid[]"}, "CreateTasksFromFiles": {"project_id": "@project", "tasks": "'[]'"}, "UpdateTasksFromFiles": {"project_id": "@project", "tasks": "'[]'"}, "GetMapping": {"id": "@mapping"},
	"EndMapping": {"id": "@mapping", "status": "'failed'"}, "CreateMapping": {"kind": "'placement'", "workspace_id": "@workspace"},
	"CreateAnomalyType": {"name": "'NEW'"}, "GetAnomalyType": {"id": "@anomaly_type"}, "UpdateAnomalyType": {"id": "@anomaly_type"}, "DeleteAnomalyType": {"id": "@anomaly_type"},
	"GetDetection": {"id": "@detection"}, "ListDetections": {"session_id": "NULL", "anomaly_type": "NULL"}, "AcknowledgeDetection": {"id": "@detection"}, "ResolveDetection": {"id": "@detection"},
	"CreateWorkspace": {"project_id": "@project", "path": "'/x'"}, "GetWorkspace": {"id": "@workspace"}, "ListWorkspaces": {"project_id": "@project", "name": "NULL"}, "UpdateWorkspace": {"id": "@workspace", "name": "'y'", "path": "NULL"}, "DeleteWorkspace": {"id": "@workspace"},
}

// query is one of sql/queries.
type query struct {
	name, text string
	params     []string // $1, $2, ...
}

var (
	queryHead  = regexp.MustCompile(`(?m)^-- name: (\w+) :\w+.*\n`)
	queryEmbed = regexp.MustCompile(`sqlc\.embed\((\w+)\)`)
	queryParam = regexp.MustCompile(`sqlc\.n?arg\('(\w+)'\)|@(\w+)`)
)

func queries(t testing.TB) []query {
	t.Helper()
	files, err := filepath.Glob("queries/*.sql")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	var all []query
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		heads := queryHead.FindAllStringSubmatchIndex(string(text), -1)
		for i, head := range heads {
			end := len(text)
			if i+1 < len(heads) {
				end = heads[i+1][0]
			}
			q := query{name: string(text[head[2]:head[3]])}
			q.text = queryParam.ReplaceAllStringFunc(queryEmbed.ReplaceAllString(string(text[head[1]:end]), "$1.*"), func(match string) string {
				groups := queryParam.FindStringSubmatch(match)
				name := groups[1] + groups[2]
				if !slices.Contains(q.params, name) {
					q.params = append(q.params, name)
				}
				return fmt.Sprintf("$%d", 1+slices.Index(q.params, name))
			})
			all = append(all, q)
		}
	}
	return all
}

func queryNamed(t testing.TB, name string) query {
	t.Helper()
	all := queries(t)
	i := slices.IndexFunc(all, func(q query) bool { return q.name == name })
	if i < 0 {
		t.Fatalf("there is no query %s in sql/queries", name)
	}
	return all[i]
}

// execute is EXECUTE with the query's arguments; changed are name, value, ....
func (q query) execute(t testing.TB, changed ...string) string {
	t.Helper()
	values := make([]string, len(q.params))
	for i, param := range q.params {
		value, ok := arguments[param]
		if own, has := argumentsOf[q.name][param]; has {
			value, ok = own, true
		}
		if n := slices.Index(changed, param); n >= 0 {
			value, ok = changed[n+1], true
		}
		if !ok {
			t.Fatalf("%s: say in arguments what @%s may be", q.name, param)
		}
		values[i] = value
	}
	if len(values) == 0 {
		return "EXECUTE " + q.name
	}
	return "EXECUTE " + q.name + "(" + strings.Join(values, ", ") + ")"
}

func (q query) prepare(t testing.TB, conn *pgx.Conn) {
	t.Helper()
	exec(t, conn, "PREPARE "+q.name+" AS "+q.text)
}

func explain(t testing.TB, conn *pgx.Conn, sql string) string {
	t.Helper()
	return strings.Join(list[string](t, conn, "EXPLAIN "+sql), "\n")
}

// withPlans runs statements and returns their plans, those of the statements within functions included: a superuser may have
// them shown, also of what it does as somebody else.
func withPlans(t testing.TB, w *world, settings string) func(sql string) string {
	t.Helper()
	config := w.hub.Config().Copy()
	var plans []string
	config.OnNotice = func(_ *pgconn.PgConn, notice *pgconn.Notice) { plans = append(plans, notice.Message) }
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	exec(t, conn, "LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on; SET client_min_messages = log; SET ROLE hub_app;"+settings)
	return func(sql string) string {
		t.Helper()
		plans = nil
		exec(t, conn, sql)
		return strings.Join(plans, "\n")
	}
}

func TestX09_ClaimingAKeyUsesTheIndex(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, "INSERT INTO idempotency_keys (org_id, account_id, key, request, status) SELECT @org, CASE WHEN n % 2 = 0 THEN @owner::uuid ELSE @member END, 'k' || n, sha256('x'), 200 FROM generate_series(1, 10000) n; ANALYZE idempotency_keys")
	plans := withPlans(t, w, acting("org", "owner", false))
	for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
		if plan := plans("SET plan_cache_mode = " + mode + "; SELECT * FROM claim_idempotency_key('k2')"); !regexp.MustCompile(`idempotency_keys_key_key[^\n]*\n\s+Index Cond:.*account_id =.*key =`).MatchString(plan) {
			t.Errorf("%s:\n%s", mode, plan)
		}
	}
}

var seqScan = regexp.MustCompile(`Seq Scan on (public\.)?(calls|spokes|operation_specs|call_payloads|call_edge_rows|sessions|messages|parts|part_deltas|events|projects|workspaces|accounts|organization_members|api_keys|audit_logs|idempotency_keys|clients|client_secrets|secret_rotations|tasks|task_dependencies|task_notes|task_status_changes|mappings|detections)\b`)

// onlyCustomPlans are queries whose generic plan, which PostgreSQL turns to after five executions, reads more than they ask for.
// They run in store.Tx, which has its statements planned for their arguments.
var onlyCustomPlans = map[string]string{
	"ListMessagesForExport":        "goes through the whole session for each batch of ids",
	"DeletePartsMissingFromImport": "goes through all imported parts of the organisation for each batch of ids",
}

// Plans are made for hub_app: under row level security an operator that is not leakproof gets no index, and a superuser's
// plan would not show it.
func TestW03_QueriesUseIndexes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, crowd)

	for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
		conn := w.connect(t, "org", "owner")
		exec(t, conn, "SET plan_cache_mode = "+mode)
		for _, q := range queries(t) {
			q.prepare(t, conn)
			if plan := explain(t, conn, q.execute(t)); seqScan.MatchString(plan) {
				t.Errorf("%s, %s:\n%s", q.name, mode, plan)
			}
		}
	}

	// What a list with a filter reads is what the filter selects.
	conn := w.connect(t, "org", "owner")
	exec(t, conn, "SET plan_cache_mode = force_custom_plan")
	project := "'" + get[string](t, w.app, "SELECT project_id::text FROM sessions WHERE source_id = 'crowd-7'") + "'"
	parent := "'" + get[string](t, w.app, "SELECT id::text FROM sessions WHERE source_id = 'crowd-1'") + "'"
	account := "'" + get[string](t, w.app, "SELECT account_id::text FROM sessions WHERE source_id = 'crowd-7'") + "'"
	filters := []struct{ query, param, value, index string }{
		{"ListSessions", "row_limit", "50", "sessions_pkey"},
		{"ListSessions", "project_id", project, "sessions_project_id_id_key"},
		{"ListSessions", "parent_id", parent, "sessions_parent_id_idx"},
		{"ListSessions", "role_name", "'role-7'", "sessions_role_name_idx"},
		{"ListSessions", "account_id", account, "sessions_account_id_idx"},
		{"ListSessions", "archived", "false", "sessions_unarchived_idx"},
		{"ListSessions", "source_id", "'crowd-7'", "sessions_source_source_id_key"},
		{"ListSessions", "run_state", "'idle'", "sessions_"},
		{"ListProjects", "slug", "'main'", "projects_slug_key"},
		{"ListProjects", "row_limit", "50", "projects_slug_key"},
		{"ListClients", "row_limit", "50", "clients_name_key"},
		{"ListClients", "name", "'c-7'", "clients_name_key"},
		{"ListClients", "type", "'webhook'", "clients_type_idx"},
		{"ListClients", "valid", "false", "clients_invalid_idx"},
		{"ListClientSecrets", "client_id", "@client", "client_secrets_name_key"},
		{"RevealClientSecret", "name", "'token'", "client_secrets_name_key"},
		{"PutClientSecret", "name", "'token'", "clients_pkey"},
		{"ReencryptClientSecret", "id", "@secret", "client_secrets_pkey"},
		{"LockSecretsToRotate", "after_id", "@zero", "client_secrets_key_version_idx"},
		{"RotateSecrets", "ids", "ARRAY[@secret]::uuid[]", "client_secrets_pkey"},
		{"GetRunningSecretRotation", "", "", "secret_rotations_running_key"},
		// W17: prefixes, in whatever locale, and for hub_app.
		{"ListTasks", "path_prefix", "'g7/'", "tasks_path_idx"},
		{"ListTasks", "slug", "'many/77'", "tasks_slug_key"},
		{"ListMessages", "after_id", "@message", "messages_session_id_id_key"},
		{"ListMessages", "after_id", "@message", "parts_message_id_idx"},
		{"GetMessage", "message_id", "@message", "parts_message_id_idx"},
		{"ListWorkspaces", "row_limit", "50", "workspaces_name_key"},
		{"ListDetections", "row_limit", "50", "detections_pkey"}, {"ListDetections", "session_id", parent, "detections_"}, {"ListDetections", "project_id", project, "detections_"},
		{"ListDetections", "anomaly_type", "'PROMPT_INJECTION'", "detections_"}, {"ListDetections", "status", "'acknowledged'", "detections_"}, {"ListDetections", "severity", "'critical'", "detections_severity_idx"},
		{"ListMappings", "spoke_id", "@spoke", "mappings_"},
		{"ListMappings", "workspace_id", "@workspace", "mappings_"},
		{"ListEvents", "after_position", "10", "events_pkey"},

		{"GetMe", "", "", "api_keys_pkey"},
		{"GetAccount", "id", "@member", "accounts_pkey"},
		{"ListAccounts", "row_limit", "50", "organization_members_"}, {"ListAccounts", "kind", "'llm'", "organization_members_"}, {"ListAccounts", "status", "'suspended'", "organization_members_"},
		{"ListOrganizations", "row_limit", "1", "organizations_slug_key"},
		{"GetMember", "account_id", "@member", "organization_members_"},
		{"ListMembers", "row_limit", "50", "organization_members_"}, {"ListMembers", "membership_level", "'admin'", "organization_members_"},
		{"ListAPIKeys", "row_limit", "50", "api_keys_pkey"}, {"ListAPIKeys", "account_id", "@member", "api_keys_account_id_idx"}, {"ListAPIKeys", "tag", "'tag-77'", "api_keys_"},
		{"ListAuditLogs", "row_limit", "50", "audit_logs_created_at_key"}, {"ListAuditLogs", "before", "now()", "audit_logs_created_at_key"}, {"ListAuditLogs", "since", "now() + interval '30 minutes'", "audit_logs_created_at_key"},
		{"ListAuditLogs", "until", "now() + interval '5 minutes'", "audit_logs_created_at_key"}, {"ListAuditLogs", "owner_id", "@member", "audit_logs_owner_id_idx"}, {"ListAuditLogs", "api_key_id", "@key", "audit_logs_api_key_id_idx"},
		{"ListAuditLogs", "acting_session_id", "@session", "audit_logs_acting_session_id_idx"}, {"ListAuditLogs", "target_id", "@key", "audit_logs_target_id_idx"}, {"ListAuditLogs", "action", "'key.revoke'", "audit_logs_action_idx"}, {"ListAuditLogs", "target_type", "'key'", "audit_logs_target_type_idx"},
		{"ExportAuditLogs", "row_limit", "50", "audit_logs_created_at_key"}, {"ExportAuditLogs", "owner_id", "@member", "audit_logs_owner_id_idx"}, {"ExportAuditLogs", "api_key_id", "@key", "audit_logs_api_key_id_idx"},
		{"ExportAuditLogs", "acting_session_id", "@session", "audit_logs_acting_session_id_idx"}, {"ExportAuditLogs", "target_id", "@key", "audit_logs_target_id_idx"}, {"ExportAuditLogs", "action", "'key.revoke'", "audit_logs_action_idx"}, {"ExportAuditLogs", "target_type", "'key'", "audit_logs_target_type_idx"},
		{"RecordIdempotentAnswer", "key", "'crowd'", "idempotency_keys_"},
	}
	prepared := map[string]bool{}
	for _, f := range filters {
		q := queryNamed(t, f.query)
		if !prepared[f.query] {
			q.prepare(t, conn)
			prepared[f.query] = true
		}
		if plan := explain(t, conn, q.execute(t, f.param, f.value)); !strings.Contains(plan, f.index) || seqScan.MatchString(plan) {
			t.Errorf("%s with %s does not use %s:\n%s", f.query, f.param, f.index, plan)
		}
	}

	// S10: all tool parts of a session.
	q := queryNamed(t, "ListPartsByType")
	q.prepare(t, conn)
	if plan := explain(t, conn, q.execute(t)); !strings.Contains(plan, "parts_type_session_id_idx") || strings.Contains(plan, "Sort") {
		t.Errorf("%s:\n%s", q.name, plan)
	}
	for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
		exec(t, conn, "SET plan_cache_mode = "+mode)
		exec(t, conn, "PREPARE parts_by_type_"+mode+" AS SELECT * FROM parts WHERE org_id = current_org_id() AND session_id = $1 AND type = $2 ORDER BY id")
		plan := explain(t, conn, "EXECUTE parts_by_type_"+mode+"(@session, 'tool')")
		if !strings.Contains(plan, "parts_type_session_id_idx") || !regexp.MustCompile(`Index Cond:.*type =.*session_id =`).MatchString(plan) || strings.Contains(plan, "Sort") {
			t.Errorf("parts by type, %s:\n%s", mode, plan)
		}
	}

	// A page of a long session is read as a page: no session's parts are gone through to find a message's. PostgreSQL thinks
	// that sessions are short.
	for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
		exec(t, conn, "SET plan_cache_mode = "+mode)
		for _, name := range []string{"ListMessages", "GetMessage", "ListMessagesForExport", "DeletePartsMissingFromImport"} {
			q := queryNamed(t, name)
			if !prepared[name] {
				q.prepare(t, conn)
				prepared[name] = true
			}
			exec(t, conn, "BEGIN")
			plan := explain(t, conn, "(ANALYZE, TIMING off) "+q.execute(t))
			exec(t, conn, "ROLLBACK")
			wasteful := regexp.MustCompile(`Rows Removed by (Join )?Filter: \d{3,}`).MatchString(plan)
			if _, never := onlyCustomPlans[name]; wasteful && !(never && mode == "force_generic_plan") {
				t.Errorf("%s, %s:\n%s", name, mode, plan)
			}
		}
	}

	// Nor are they when foreign keys do their work.
	exec(t, w.hub, views+"SET plan_cache_mode = force_generic_plan")
	foreignKeys := list[string](t, w.hub, `
		SELECT concat_ws(' ', name, tab, array_to_string(cols, ' ')) FROM constraints
		WHERE contype = 'f' AND tab IN ('sessions', 'messages', 'parts', 'client_secrets') AND confrelid NOT IN (SELECT oid FROM lookups)`)
	if len(foreignKeys) < 6 {
		t.Errorf("only %v", foreignKeys)
	}
	for _, fk := range foreignKeys {
		words := strings.Fields(fk)
		var conditions []string
		for i, column := range words[2:] {
			conditions = append(conditions, fmt.Sprintf("$%d = %s", i+1, column))
		}
		exec(t, w.hub, fmt.Sprintf("PREPARE %s AS DELETE FROM ONLY %s WHERE %s", words[0], words[1], strings.Join(conditions, " AND ")))
		plan := explain(t, w.hub, "EXECUTE "+words[0]+"("+strings.Repeat("NULL, ", len(words)-3)+"NULL)")
		if strings.Contains(plan, "Filter:") || !strings.Contains(plan, "Index Cond:") {
			t.Errorf("%s:\n%s", words[0], plan)
		}
	}

	// PostgreSQL may give up planning for the values after five executions. What it does then is not ours to say: go test -v
	// tells.
	for _, f := range filters[1:2] {
		conn := w.connect(t, "org", "owner")
		q := queryNamed(t, f.query)
		q.prepare(t, conn)
		for range 6 {
			exec(t, conn, q.execute(t, f.param, f.value))
		}
		plan := explain(t, conn, q.execute(t, f.param, f.value))
		counts := get[string](t, conn, "SELECT format('%s generic, %s custom', generic_plans, custom_plans) FROM pg_prepared_statements")
		t.Logf("%s with %s after six executions: %s\n%s", f.query, f.param, counts, plan)
	}
}
