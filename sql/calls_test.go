package sql_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

const callsFixture = `
SET session_replication_role = replica; UPDATE retention_policies SET call_days = NULL; SET session_replication_role = origin; -- the fixtures' ids are of 1970
INSERT INTO calls (org_id, id, request_id, routed, operation, kind, session_id, spoke_id, deadline_at) VALUES
	(@org, @call, 'r1', true, 'fs.read', 'query', @session, @spoke, now() + interval '1 hour'), (@other_org, @other_call, 'r1', true, 'fs.read', 'query', NULL, @other_spoke, now() + interval '1 hour');
INSERT INTO calls (org_id, id, request_id, routed, operation, spoke_id, deadline_at, spoke_epoch, dispatched_at, status, caller_account_id) VALUES
	(@org, @held_call, 'r3', true, 'fs.read', @spoke, now() + interval '1 hour', 1, now(), 'dispatched', @owner);
INSERT INTO call_payloads (org_id, call_id, direction, key_version, ciphertext) VALUES (@org, @held_call, 'output', 1, 'x');
INSERT INTO calls (org_id, id, routed, operation, parent_id) VALUES (@org, @child_call, false, 'fs.list', @call);
INSERT INTO call_edge_rows (org_id, source_call_id, target_call_id, type) VALUES (@org, @call, @child_call, 'depends_on');
INSERT INTO calls (org_id, id, routed, operation) VALUES (@other_org, @other_child_call, false, 'fs.list');
INSERT INTO call_edge_rows (org_id, source_call_id, target_call_id, type) VALUES (@other_org, @other_call, @other_child_call, 'depends_on');
INSERT INTO call_payloads (org_id, call_id, direction, key_version, ciphertext) VALUES (@org, @call, 'input', 1, 'x'), (@other_org, @other_call, 'input', 1, 'x');`

const (
	newRecord = "INSERT INTO calls (org_id, routed, operation, %s) VALUES (@org, false, 'x.y', ??)"
	newEdge   = "INSERT INTO call_edge_rows (org_id, source_call_id, target_call_id, type) VALUES (@org, %s)"
	held      = "UPDATE calls SET status = 'dispatched', spoke_epoch = 1, dispatched_at = now() WHERE id = @call"
	running   = held + "; UPDATE calls SET status = 'running', attempts = 1, started_at = now() WHERE id = @call"
	over      = running + "; UPDATE calls SET status = 'completed', ended_at = clock_timestamp(), ended_by = 'spoke' WHERE id = @call"
)

var callsRules = []ruleCase{
	{rule: "call_statuses_pkey", hub: true, sql: "INSERT INTO call_statuses (status, description) VALUES (??, 'x')", bad: []string{"'pending'"}, good: []string{"'new'"}},
	{rule: "call_status_transitions_pkey", hub: true, sql: "INSERT INTO call_status_transitions (routed, from_status, to_status) VALUES (true, 'pending', ??)", bad: []string{"'dispatched'"}, good: []string{"'running'"}},
	{rule: "call_status_transitions_from_status_fkey", hub: true, sql: "INSERT INTO call_status_transitions (routed, from_status, to_status) VALUES (true, ??, 'running')", bad: []string{"'new'"}, good: []string{"'pending'"}},
	{rule: "call_status_transitions_to_status_fkey", hub: true, sql: "INSERT INTO call_status_transitions (routed, from_status, to_status) VALUES (true, 'pending', ??)", bad: []string{"'new'"}, good: []string{"'running'"}},
	{
		rule: "call_status_transitions_from_status_fkey_in_use", hub: true,
		before: "INSERT INTO call_statuses (status, description) VALUES ('new', 'x'); DELETE FROM call_status_transitions WHERE to_status = 'dispatched'",
		sql:    "DELETE FROM call_statuses WHERE status = ??", bad: []string{"'dispatched'"}, good: []string{"'new'"},
	},
	{rule: "call_status_transitions_to_status_fkey_in_use", hub: true, before: "INSERT INTO call_statuses (status, description) VALUES ('new', 'x')", sql: "DELETE FROM call_statuses WHERE status = ??", bad: []string{"'aborted'"}, good: []string{"'new'"}},
	{rule: "call_edge_types_pkey", hub: true, sql: "INSERT INTO call_edge_types (type, description) VALUES (??, 'x')", bad: []string{"'depends_on'"}, good: []string{"'blocks'"}},
	{rule: "sensitive_names_pkey", hub: true, sql: "INSERT INTO sensitive_names (name) VALUES (??)", bad: []string{"'password'"}, good: []string{"'kennwort'"}},
	{rule: "sensitive_names_shape_check", hub: true, sql: "INSERT INTO sensitive_names (name) VALUES (??)", bad: []string{"''", "'api_key'", "'Kennwort'", "'a|b'", "'.*'"}, good: []string{"'kennwort'", "'pin2'"}},
	{rule: "retention_policies_call_days_check", hub: true, sql: "UPDATE retention_policies SET call_days = ?? WHERE org_id = @org", bad: []string{"0", "36501"}, good: []string{"1", "36500", "NULL"}},
	{rule: "retention_policies_call_payload_days_check", hub: true, sql: "UPDATE retention_policies SET call_payload_days = ?? WHERE org_id = @org", bad: []string{"0", "36501"}, good: []string{"1", "36500", "NULL"}},
	{rule: "retention_policies_call_payload_limit_check", hub: true, sql: "UPDATE retention_policies SET call_payload_limit = ?? WHERE org_id = @org", bad: []string{"-1", "1048577"}, good: []string{"0", "1048576"}},

	{rule: "calls_tenant", sql: "INSERT INTO calls (org_id, routed, operation) VALUES (??, false, 'x')", bad: []string{"@other_org", "@new"}, good: []string{"@org"}},
	{
		rule: "calls_limited", before: as("owner", "project_ids", "'{' || @new || '}'"), sql: "INSERT INTO calls (org_id, routed, operation, session_id) VALUES (@org, false, 'x.y', ??)", bad: []string{"@session"}, good: []string{"NULL"},
	},
	{
		rule: "call_edge_rows_limited", before: "INSERT INTO calls (org_id, id, routed, operation) VALUES (@org, @new, false, 'x.y'), (@org, @high, false, 'x.y'); " + as("owner", "project_ids", "'{' || @new || '}'"),
		sql: fmt.Sprintf(newEdge, "@new, ??, 'requested_by'"), bad: []string{"@child_call"}, good: []string{"@high"},
	},
	{
		rule: "call_payloads_limited", before: "INSERT INTO calls (org_id, id, routed, operation) VALUES (@org, @new, false, 'x.y'); " + as("owner", "project_ids", "'{' || @new || '}'"),
		sql: "INSERT INTO call_payloads (org_id, call_id, direction, key_version, ciphertext) VALUES (@org, ??, 'output', 1, 'x')", bad: []string{"@child_call"}, good: []string{"@new"},
	},
	{rule: "calls_pkey", sql: fmt.Sprintf(newRecord, "id"), bad: []string{"@call"}, good: []string{"@new", "@other_call"}},
	{rule: "calls_id_version_check", sql: fmt.Sprintf(newRecord, "id"), bad: notUUIDv7, good: uuidv7},
	{rule: "calls_request_id_key", sql: fmt.Sprintf(newRecord, "request_id"), bad: []string{"'r1'"}, good: []string{"'r2'", "NULL"}},
	{rule: "calls_org_id_fkey", hub: true, sql: "INSERT INTO calls (org_id, routed, operation) VALUES (??, false, 'x')", bad: []string{"@new"}, good: []string{"@org"}},
	{
		rule: "calls_org_id_fkey_in_use", hub: true, before: "DELETE FROM sessions; DELETE FROM clients; DELETE FROM tasks; DELETE FROM projects; DELETE FROM roles; DELETE FROM spokes; DELETE FROM idempotency_keys; DELETE FROM calls WHERE org_id = @other_org",
		sql: "DELETE FROM organizations WHERE id = ??", bad: []string{"@org"}, good: []string{"@other_org"},
	},
	{rule: "calls_parent_id_fkey", sql: fmt.Sprintf(newRecord, "parent_id"), bad: []string{"@new", "@other_call"}, good: []string{"@call", "NULL"}},
	{rule: "calls_session_id_fkey", sql: fmt.Sprintf(newRecord, "session_id"), bad: []string{"@new", "@other_session"}, good: []string{"@session", "NULL"}},
	{rule: "calls_caller_account_id_fkey", hub: true, sql: fmt.Sprintf(newRecord, "caller_account_id"), bad: []string{"@nobody", "@other_owner"}, good: []string{"@member", "NULL"}},
	{rule: "calls_spoke_id_fkey", sql: fmt.Sprintf(newRecord, "spoke_id"), bad: []string{"@new", "@other_spoke"}, good: []string{"@spoke", "NULL"}},
	{rule: "calls_status_fkey", sql: fmt.Sprintf(newRecord, "status"), bad: []string{"'new'", "''"}, good: []string{"'pending'", "'running'"}},
	{rule: "calls_status_fkey_in_use", hub: true, before: "DELETE FROM call_status_transitions; INSERT INTO call_statuses (status, description) VALUES ('new', 'x')", sql: "DELETE FROM call_statuses WHERE status = ??", bad: []string{"'pending'"}, good: []string{"'new'"}},
	{rule: "calls_request_id_length_check", sql: fmt.Sprintf(newRecord, "request_id"), bad: []string{"''", "repeat('ä', 128)"}, good: []string{"'x'", "repeat('a', 255)"}},
	{rule: "calls_operation_length_check", sql: "INSERT INTO calls (org_id, routed, operation) VALUES (@org, false, ??)", bad: []string{"''", "repeat('ä', 201)"}, good: []string{"'x'", "repeat('ä', 200)"}},
	{rule: "calls_kind_check", sql: fmt.Sprintf(newRecord, "kind"), bad: []string{"''", "'tool'"}, good: []string{"'query'", "NULL"}},
	{rule: "calls_not_own_parent_check", sql: "INSERT INTO calls (org_id, id, routed, operation, parent_id) VALUES (@org, @new, false, 'x', ??)", bad: []string{"@new"}, good: []string{"@call"}},
	{rule: "calls_attempts_check", sql: "UPDATE calls SET attempts = ?? WHERE id = @call", bad: []string{"-1", "2"}, good: []string{"0", "1"}},
	{rule: "calls_attempts_check", sql: fmt.Sprintf(newRecord, "max_attempts"), bad: []string{"0", "11"}, good: []string{"1", "10"}},
	{rule: "calls_redact_paths_shape_check", sql: fmt.Sprintf(newRecord, "redact_paths"), bad: []string{"'{a}'", "'{NULL}'"}, good: []string{"'{}'", "'{/a}'"}},
	{rule: "calls_payload_limit_check", sql: fmt.Sprintf(newRecord, "payload_limit"), bad: []string{"-1", "1048577"}, good: []string{"0", "1048576", "NULL"}},
	{rule: "calls_identity_object_check", hub: true, sql: fmt.Sprintf(newRecord, "identity"), bad: notObjects, good: objects},
	{rule: "calls_error_code_length_check", sql: fmt.Sprintf(newRecord, "error_code"), bad: []string{"''", "repeat('ä', 201)"}, good: []string{"'x'", "repeat('ä', 200)", "NULL"}},
	{rule: "calls_ended_by_check", sql: fmt.Sprintf(newRecord, "status, ended_at, ended_by"), bad: []string{"'failed', now(), 'x'"}, good: []string{"'failed', now(), 'recorder'", "'completed', now(), 'spoke'"}},
	{
		rule: "calls_ended_whole_check", sql: fmt.Sprintf(newRecord, "status, ended_at, ended_by"),
		bad: []string{"'failed', NULL, NULL", "'running', now(), 'recorder'", "'failed', now(), NULL", "'running', NULL, 'recorder'"}, good: []string{"'failed', now(), 'recorder'", "'running', NULL, NULL"},
	},
	{rule: "calls_held_whole_check", sql: "UPDATE calls SET ?? WHERE id = @call", bad: []string{"status = 'dispatched'", "status = 'dispatched', spoke_epoch = 1", "status = 'dispatched', dispatched_at = now()"}, good: []string{"status = 'dispatched', spoke_epoch = 1, dispatched_at = now()", "spoke_epoch = 1"}},
	{rule: "calls_started_before_ended_check", sql: fmt.Sprintf(newRecord, "status, ended_by, started_at, ended_at"), bad: []string{"'failed', 'recorder', now(), now() - interval '1 second'"}, good: []string{"'failed', 'recorder', now(), now()", "'failed', 'recorder', NULL, now()"}},
	{rule: "calls_routed_has_deadline_check", sql: "INSERT INTO calls (org_id, operation, routed, deadline_at) VALUES (@org, 'x.y', ??)", bad: []string{"true, NULL"}, good: []string{"true, now()", "false, NULL"}},
	{rule: "calls_storage_url_length_check", hub: true, sql: fmt.Sprintf(newRecord, "storage_url"), bad: []string{"repeat('a', 2001)"}, good: []string{"repeat('a', 2000)", "NULL"}},
	{rule: "calls_metadata_check", sql: fmt.Sprintf(newRecord, "metadata"), bad: notMetadata, good: metadata},
	{
		rule: "calls_parent_alive", before: over, sql: "INSERT INTO calls (org_id, operation, deadline_at, routed, parent_id) VALUES (@org, 'x.y', now(), ??)",
		bad: []string{"true, @call"}, good: []string{"true, @child_call", "false, @call", "true, NULL"},
	},
	{rule: "calls_status_transition", before: held, sql: "UPDATE calls SET status = ?? WHERE id = @call", bad: []string{"'completed', ended_at = now(), ended_by = 'spoke'"}, good: []string{"'running'", "'pending'", "'failed', ended_at = now(), ended_by = 'spoke'"}},
	{rule: "calls_status_transition", before: over, sql: "UPDATE calls SET status = ??, ended_at = now() WHERE id = @call", bad: []string{"'failed'", "'aborted'"}, good: []string{"'completed'"}},
	{
		rule: "calls_identity_immutable", hub: true, sql: "UPDATE calls SET ?? WHERE id = @child_call",
		bad: []string{"id = @new", "org_id = @other_org", "request_id = 'x'", "routed = true", "operation = 'x'", "identity = '{\"a\": 1}'", "pinned = true", "max_attempts = 2", "redact_paths = '{/a}'", "payload_limit = 1", "created_at = created_at - interval '1 hour'"}, good: []string{"kind = 'query'", "operation = 'fs.list'"},
	},
	{rule: "calls_links_kept", hub: true, sql: "UPDATE calls SET ??", bad: []string{"parent_id = NULL WHERE id = @child_call", "session_id = NULL WHERE id = @call", "session_id = @child WHERE id = @call", "session_id = @session WHERE id = @child_call"}, good: []string{"session_id = @session WHERE id = @call"}},
	{
		rule: "calls_recorded_by_caller", state: "42501", before: "INSERT INTO calls (org_id, id, routed, operation) VALUES (@org, @new, false, 'x.y'); " + fmt.Sprintf(asAccount, "member", "member") + "; INSERT INTO calls (org_id, id, routed, operation) VALUES (@org, @high, false, 'x.y')",
		sql: "UPDATE calls SET status = 'running' WHERE id = ??", bad: []string{"@new"}, good: []string{"@high"},
	},
	{rule: "call_held_by_connection", before: held, sql: "SELECT FROM step_call(@call, ??, 'running', NULL, NULL, NULL, NULL, NULL)", bad: []string{"@spoke, 2", "@idle_spoke, 1", "@new, 1"}, good: []string{"@spoke, 1"}},
	{rule: "call_not_over", before: over + "; INSERT INTO calls (org_id, id, routed, operation, spoke_id, deadline_at) VALUES (@org, @new, true, 'x.y', @spoke, now()); UPDATE calls SET status = 'dispatched', spoke_epoch = 1, dispatched_at = now() WHERE id = @new", sql: "SELECT FROM step_call(??, @spoke, 1, 'failed', NULL, NULL, 'x', NULL, NULL)", bad: []string{"@call"}, good: []string{"@new"}},
	{rule: "call_started_once", before: running, sql: "SELECT FROM step_call(@call, @spoke, 1, ??, NULL, NULL, NULL, NULL, NULL)", bad: []string{"'running'"}, good: []string{"'completed'"}},
	{
		rule: "call_aborted_by_caller", state: "42501", before: fmt.Sprintf(asAccount, "member", "member") + "; INSERT INTO calls (org_id, id, routed, operation) VALUES (@org, @new, false, 'x.y')",
		sql: "SELECT FROM abort_call(??, NULL)", bad: []string{"@call"}, good: []string{"@new"},
	},
	{
		rule: "operation_scopes_covered", state: "42501", before: "UPDATE operation_specs SET scopes_all = '{a:read,b:read}', scopes_any = '{c:read,d:read}' WHERE id = @spec",
		sql: "SELECT FROM set_config('hub.key_scopes', ??, true), LATERAL find_operation('fs.read')", bad: []string{"''", "'a:read'", "'a:read c:read'", "'a:read b:read'", "'platform:*'"}, good: []string{"'a:read b:read d:read'", "'*'"},
	},
	{rule: "operation_callable", before: "INSERT INTO operation_specs (org_id, spoke_id, namespace, name, kind) VALUES (@org, @spoke, 'fs', 'watch', 'subscription')", sql: "SELECT FROM find_operation(??)", bad: []string{"'fs.watch'"}, good: []string{"'fs.read'"}},
	{
		rule: "operation_offered_now", state: "55000", before: "INSERT INTO operation_specs (org_id, spoke_id, namespace, name, kind) VALUES (@org, @idle_spoke, 'db', 'read', 'query'); UPDATE spokes SET status = 'reconnecting' WHERE id = @idle_spoke",
		sql: "SELECT FROM find_operation(??)", bad: []string{"'db.read'"}, good: []string{"'fs.read'"},
	},

	{rule: "call_edge_rows_tenant", sql: "INSERT INTO call_edge_rows (org_id, source_call_id, target_call_id, type) VALUES (??, 'requested_by')", bad: []string{"@other_org, @other_call, @other_child_call"}, good: []string{"@org, @call, @child_call"}},
	{rule: "call_edge_rows_pkey", hub: true, sql: "INSERT INTO call_edge_rows (org_id, source_call_id, target_call_id, type, id) SELECT @org, @child_call, @call, 'requested_by', ??", bad: []string{"(SELECT id FROM call_edge_rows WHERE org_id = @org)"}, good: []string{"@new"}},
	{rule: "call_edge_rows_id_version_check", hub: true, sql: "INSERT INTO call_edge_rows (org_id, source_call_id, target_call_id, type, id) VALUES (@org, @child_call, @call, 'requested_by', ??)", bad: notUUIDv7, good: uuidv7},
	{rule: "call_edge_rows_source_target_type_key", sql: fmt.Sprintf(newEdge, "??"), bad: []string{"@call, @child_call, 'depends_on'"}, good: []string{"@child_call, @call, 'depends_on'", "@call, @child_call, 'requested_by'"}},
	{rule: "call_edge_rows_source_call_id_fkey", sql: fmt.Sprintf(newEdge, "??, @child_call, 'requested_by'"), bad: []string{"@new", "@other_call"}, good: []string{"@call"}},
	{rule: "call_edge_rows_target_call_id_fkey", sql: fmt.Sprintf(newEdge, "@call, ??, 'requested_by'"), bad: []string{"@new", "@other_call"}, good: []string{"@child_call"}},
	{rule: "call_edge_rows_type_fkey", sql: fmt.Sprintf(newEdge, "@call, @child_call, ??"), bad: []string{"'blocks'", "''"}, good: []string{"'requested_by'"}},
	{rule: "call_edge_rows_type_fkey_in_use", hub: true, sql: "DELETE FROM call_edge_types WHERE type = ??", bad: []string{"'depends_on'"}, good: []string{"'requested_by'"}},
	{rule: "call_edge_rows_not_triggered_check", sql: fmt.Sprintf(newEdge, "@call, @child_call, ??"), bad: []string{"'triggered'"}, good: []string{"'requested_by'"}},
	{rule: "call_edge_rows_two_calls_check", sql: fmt.Sprintf(newEdge, "@call, ??, 'requested_by'"), bad: []string{"@call"}, good: []string{"@child_call"}},

	{rule: "call_payloads_tenant", sql: "INSERT INTO call_payloads (org_id, call_id, direction, key_version, ciphertext) VALUES (??, 'output', 1, 'x')", bad: []string{"@other_org, @other_call"}, good: []string{"@org, @call"}},
	{rule: "call_payloads_pkey", hub: true, sql: "INSERT INTO call_payloads (org_id, call_id, direction, key_version, ciphertext, id) SELECT @org, @call, 'output', 1, 'x', ??", bad: []string{"(SELECT id FROM call_payloads WHERE org_id = @org AND direction = 'input')"}, good: []string{"@new"}},
	{rule: "call_payloads_id_version_check", hub: true, sql: "INSERT INTO call_payloads (org_id, call_id, direction, key_version, ciphertext, id) VALUES (@org, @call, 'output', 1, 'x', ??)", bad: notUUIDv7, good: uuidv7},
	{rule: "call_payloads_call_id_direction_key", sql: "INSERT INTO call_payloads (org_id, call_id, direction, key_version, ciphertext) VALUES (@org, @call, ??, 1, 'x')", bad: []string{"'input'"}, good: []string{"'output'"}},
	{rule: "call_payloads_call_id_fkey", sql: "INSERT INTO call_payloads (org_id, call_id, direction, key_version, ciphertext) VALUES (@org, ??, 'output', 1, 'x')", bad: []string{"@new", "@other_call"}, good: []string{"@call"}},
	{rule: "call_payloads_key_version_fkey", sql: "INSERT INTO call_payloads (org_id, call_id, direction, key_version, ciphertext) VALUES (@org, @call, 'output', ??, 'x')", bad: []string{"77"}, good: []string{"1"}},
	{
		rule: "call_payloads_key_version_fkey_in_use", hub: true, before: "INSERT INTO encryption_keys (version, fingerprint) VALUES (78, sha256('78')), (79, sha256('79')); UPDATE call_payloads SET key_version = 78",
		sql: "DELETE FROM encryption_keys WHERE version = ??", bad: []string{"78"}, good: []string{"79"},
	},
	{rule: "call_payloads_direction_check", sql: "INSERT INTO call_payloads (org_id, call_id, direction, key_version, ciphertext) VALUES (@org, @call, ??, 1, 'x')", bad: []string{"'error'", "''"}, good: []string{"'output'"}},
	{rule: "call_payloads_size_check", sql: "INSERT INTO call_payloads (org_id, call_id, direction, key_version, ciphertext) VALUES (@org, @call, 'output', 1, convert_to(repeat('x', ??), 'UTF8'))", bad: []string{"8388608 + 30"}, good: []string{"8388608 + 29"}},
}

var callsDeletes = []deleteCase{
	{fk: "calls_parent_id_fkey", delete: "DELETE FROM calls WHERE id = @call", gone: "SELECT count(*) = 1 FROM calls WHERE id = @child_call AND parent_id IS NULL"},
	{fk: "calls_session_id_fkey", delete: "DELETE FROM sessions WHERE id = @session", gone: "SELECT count(*) = 1 FROM calls WHERE id = @call AND session_id IS NULL"},
	{
		fk: "calls_caller_account_id_fkey", before: "INSERT INTO calls (org_id, id, routed, operation, caller_account_id) VALUES (@org, @new, false, 'x', @member)",
		delete: "DELETE FROM organization_members WHERE account_id = @member", gone: "SELECT count(*) = 1 FROM calls WHERE id = @new AND caller_account_id IS NULL",
	},
	{fk: "calls_spoke_id_fkey", delete: "DELETE FROM spokes WHERE id = @spoke", gone: "SELECT count(*) = 1 FROM calls WHERE id = @call AND spoke_id IS NULL"},
	{fk: "call_edge_rows_source_call_id_fkey", delete: "DELETE FROM calls WHERE id = @call", gone: "SELECT count(*) = 0 FROM call_edge_rows WHERE source_call_id = @call"},
	{fk: "call_edge_rows_target_call_id_fkey", delete: "DELETE FROM calls WHERE id = @child_call", gone: "SELECT count(*) = 0 FROM call_edge_rows WHERE target_call_id = @child_call"},
	{fk: "call_payloads_call_id_fkey", delete: "DELETE FROM calls WHERE id = @call", gone: "SELECT count(*) = 0 FROM call_payloads WHERE call_id = @call"},
}

func TestX02_CallsRules(t *testing.T) {
	t.Parallel()
	checkRules(t, callsRules)
}

func TestC14_CallsDeletes(t *testing.T) {
	t.Parallel()
	checkDeletes(t, callsDeletes)
}

// C10, S18: triggered is said by parent_id alone, and readers see one graph.
func TestC10_EdgesAreOneView(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if got := list[string](t, w.app, "SELECT type FROM call_edges WHERE source_call_id = @call AND target_call_id = @child_call ORDER BY 1"); strings.Join(got, " ") != "depends_on triggered" {
		t.Error(got)
	}
	if got := get[int](t, w.app, "SELECT count(*) FROM call_edges"); got != 2 {
		t.Errorf("%d edges: another organisation's among them", got)
	}
}

// sensitive are spellings of names under which secrets come.
var sensitive = []string{
	"password", "Password", "PASSWORD", "passWord", "pass_word", "pass-word", "user.password", "dbPassword", "password2", "passwd", "passphrase", "pwd", "pass", "secret", "client_secret", "clientSecret",
	"SECRET_KEY", "aws-secret-access-key", "token", "accessToken", "access_token", "X-Auth-Token", "refresh token", "idToken", "apikey", "apiKey", "api_key", "API-KEY", "X-Api-Key", "x-api-key", "private_key", "privateKey",
	"ssh.key", "sshKey", "signingKey", "credential", "credentials", "Authorization", "Proxy-Authorization", "cookie", "Set-Cookie", "sessionKey", "key", "auth", "pin", "otp", "jwt", "bearer", "connectionString", "encryption key",
	"p a s s w o r d", "pass\x10" + "0word",
}

const planted = "sk-planted-0815"

// W08: secrets under any spelling of a name, at any depth, in each payload, by each way to write, are not written down.
func TestW08_SecretsAreNotWrittenDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if len(sensitive) < 40 {
		t.Fatal(len(sensitive))
	}
	wrap := func(name string, value any) map[string]any {
		return map[string]any{"kept": "yes", "list": []any{1, map[string]any{"a": map[string]any{name: value}}}, name: value}
	}
	for _, name := range sensitive {
		for _, value := range []any{planted, []any{planted}, map[string]any{"x": map[string]any{"y": planted}}, 815} {
			text, err := json.Marshal(wrap(name, value))
			if err != nil {
				t.Fatal(err)
			}
			meta := `{"_app": ` + string(text) + `}`
			got := get[string](t, w.app, fmt.Sprintf(`
				WITH made AS (INSERT INTO calls (org_id, routed, operation, input, metadata) VALUES (@org, false, 'x.y', %[1]s, %[2]s) RETURNING input::text || metadata::text AS text)
				SELECT text FROM made`, quoted(string(text)), quoted(meta)))
			if strings.Contains(got, planted) || strings.Contains(got, "815") || strings.Count(got, `"yes"`) != 2 {
				t.Errorf("%q, %v: %s", name, value, got)
			}
		}
	}
	secret := `{"deep": [{"apiKey": "` + planted + `"}]}`
	exec(t, w.app, "INSERT INTO calls (org_id, id, routed, operation) VALUES (@org, @new, false, 'x.y')")
	for _, column := range []string{"input", "output", "error"} { // by UPDATE
		exec(t, w.app, "UPDATE calls SET "+column+" = "+quoted(secret)+" WHERE id = @new")
	}
	exec(t, w.app, "UPDATE calls SET metadata = "+quoted(`{"_token": {"x": "`+planted+`"}, "_a": `+secret+`}`)+" WHERE id = @new")
	if got := get[string](t, w.app, "SELECT c::text FROM calls c WHERE id = @new"); strings.Contains(got, planted) || !strings.Contains(got, "[redacted]") {
		t.Error(got)
	}
}

// quoted is an SQL literal.
func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// W08: what is no secret stays: counts, flags, names that only sound like it; and the operation's own paths go.
func TestW08_RedactionIsExact(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct{ in, paths, want string }{
		{`{"tokens": {"input": 5, "output": 7, "cache": {"read": 1}}, "maxTokens": 4096, "token_count": 3}`, "{}", `{"tokens": {"input": 5, "output": 7, "cache": {"read": 1}}, "maxTokens": 4096, "token_count": 3}`},
		{`{"tokens": ["a", 1], "maxTokens": "a"}`, "{}", `{"tokens": ["[redacted]", 1], "maxTokens": "[redacted]"}`},
		{`{"hasPassword": true, "password": null}`, "{}", `{"hasPassword": true, "password": null}`},
		{`{"keyboard": "x", "monkey": "y", "passenger": "z", "author": "w", "pinned": "v", "keys": ["a"]}`, "{}", `{"keyboard": "x", "monkey": "y", "passenger": "z", "author": "w", "pinned": "v", "keys": ["a"]}`},
		{`{"password": {"a": 1}}`, "{}", `{"password": {"_redacted": true}}`},
		{`[{"name": "Authorization", "value": "x"}, {"name": "Accept", "value": "y"}, {"header": "X-Api-Key", "value": "z"}]`, "{}", `[{"name": "Authorization", "value": "[redacted]"}, {"name": "Accept", "value": "y"}, {"header": "X-Api-Key", "value": "[redacted]"}]`},
		{`[{"key": "DB_PASSWORD", "value": "x"}, {"name": "a", "variable": "API_TOKEN", "value": "y"}, {"key": "PATH", "value": "z"}]`, "{}", `[{"key": "[redacted]", "value": "[redacted]"}, {"name": "a", "variable": "API_TOKEN", "value": "[redacted]"}, {"key": "[redacted]", "value": "z"}]`},
		{`{"a": {"b": 1, "c": 2}, "d": [{"e": 3, "f": true}, {"e": 4}]}`, "{/a/b,/d/*/e,/d/0/f,/nothing/here}", `{"a": {"b": "[redacted]", "c": 2}, "d": [{"e": "[redacted]", "f": "[redacted]"}, {"e": "[redacted]"}]}`},
		{`{"a/b": {"~c": 1}, "x": 1}`, "{/a~1b/~0c}", `{"a/b": {"~c": "[redacted]"}, "x": 1}`},
		{`"sk-planted"`, "{}", `"sk-planted"`}, {`null`, "{}", `null`}, {`[]`, "{}", `[]`}, {`{}`, "{/a}", `{}`},
	} {
		if got := get[bool](t, w.app, fmt.Sprintf("SELECT redact_json(%s, sensitive_pattern(), '%s') = %s", quoted(c.in), c.paths, quoted(c.want))); !got {
			t.Errorf("%s with %s: %s, want %s", c.in, c.paths, get[string](t, w.app, fmt.Sprintf("SELECT redact_json(%s, sensitive_pattern(), '%s')::text", quoted(c.in), c.paths)), c.want)
		}
	}
}

// W18: size, hash and the first 1,024 bytes, cut between characters, all of the redacted text.
func TestW18_TruncationIsExact(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, unit := range []string{"a", "ä", "€", "😀", `"`, `\`} {
		for shift := range 4 {
			value, err := json.Marshal(map[string]string{"pin": planted, "text": strings.Repeat("x", shift) + strings.Repeat(unit, 11000/len(unit))})
			if err != nil {
				t.Fatal(err)
			}
			whole := get[string](t, w.app, fmt.Sprintf("SELECT redact_json(%s, sensitive_pattern(), '{}')::text", quoted(string(value))))
			text := get[string](t, w.app, fmt.Sprintf("WITH made AS (INSERT INTO calls (org_id, routed, operation, output) VALUES (@org, false, 'x.y', %s) RETURNING output::text) SELECT output FROM made", quoted(string(value))))
			var marker struct {
				Truncated struct {
					Size            int
					SHA256, Preview string
				} `json:"_truncated"`
			}
			if err := json.Unmarshal([]byte(text), &marker); err != nil {
				t.Fatal(err)
			}
			got, sum := marker.Truncated, sha256.Sum256([]byte(whole))
			if got.Size != len(whole) || got.SHA256 != hex.EncodeToString(sum[:]) || !strings.HasPrefix(whole, got.Preview) || len(got.Preview) > 1024 || len(got.Preview) < 1021 || !utf8.ValidString(got.Preview) {
				t.Errorf("%q, %d: %d bytes of %d, %d", unit, shift, len(got.Preview), got.Size, len(whole))
			}
			if rest := whole[len(got.Preview):]; len(got.Preview)+len(string([]rune(rest)[0])) <= 1024 {
				t.Errorf("%q, %d: the preview stops at %d, a character early", unit, shift, len(got.Preview))
			}
			if strings.Contains(text, planted) || !strings.Contains(got.Preview, "[redacted]") {
				t.Errorf("a preview that was not redacted: %s", got.Preview)
			}
		}
	}
	// At the limit it stays, above it goes; the operation's limit counts before the organisation's.
	fits := func(size int, limit string) bool {
		t.Helper()
		return get[bool](t, w.app, fmt.Sprintf("WITH made AS (INSERT INTO calls (org_id, routed, operation, payload_limit, output) VALUES (@org, false, 'x.y', %s, to_jsonb(repeat('x', %d))) RETURNING output) SELECT jsonb_typeof(output) = 'string' FROM made", limit, size-2))
	}
	for _, c := range []struct {
		size  int
		limit string
		want  bool
	}{{10240, "NULL", true}, {10241, "NULL", false}, {20000, "20000", true}, {20001, "20000", false}, {2, "0", false}} {
		if got := fits(c.size, c.limit); got != c.want {
			t.Errorf("%d bytes with limit %s: %v", c.size, c.limit, got)
		}
	}
	exec(t, w.hub, "UPDATE retention_policies SET call_payload_limit = 100 WHERE org_id = @org")
	if fits(101, "NULL") || !fits(100, "NULL") || !fits(101, "200") {
		t.Error("the organisation's limit")
	}
}

// W19: who calls is who is signed in.
func TestW19_TheCallerIsWhoIsSignedIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.app, "INSERT INTO calls (org_id, id, routed, operation) VALUES (@org, @new, false, 'x.y')")
	if !get[bool](t, w.app, "SELECT caller_account_id = @owner AND identity ->> 'accountId' = @owner::text FROM calls WHERE id = @new") {
		t.Error("another caller than the one who is signed in")
	}
	_, err := attempt(t, w.app, "", "INSERT INTO calls (org_id, routed, operation, caller_account_id) VALUES (@org, false, 'x.y', @member)")
	refuses(t, err, "42501", "")
}

// A deadline and an end propagate to what was called; what a runtime records is its own affair.
func TestDeadlineAndAbortPropagate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, `INSERT INTO calls (org_id, id, routed, operation, spoke_id, deadline_at) VALUES (@org, @new, true, 'a.root', @spoke, now() + interval '1 minute')`)
	parent := "@new"
	for depth := range 30 {
		id := fmt.Sprintf("00000000-0000-7000-8000-0000000d%04d", depth)
		exec(t, w.hub, fmt.Sprintf(`INSERT INTO calls (org_id, id, routed, operation, spoke_id, parent_id, deadline_at) VALUES (@org, '%s', true, 'a.child', @spoke, %s, now() + interval '1 hour')`, id, parent))
		parent = "'" + id + "'"
	}
	if n := get[int](t, w.hub, "SELECT count(*) FROM calls WHERE operation = 'a.child' AND deadline_at < now() + interval '2 minutes'"); n != 30 {
		t.Errorf("%d of 30 children end with their parent's deadline", n)
	}
	exec(t, w.hub, "UPDATE calls SET status = 'dispatched', spoke_epoch = 1, dispatched_at = now() WHERE id = "+parent)
	exec(t, w.hub, "SELECT set_config('hub.org_id', @org, false), set_config('hub.account_id', @owner, false), set_config('hub.membership_level', 'owner', false)")
	exec(t, w.hub, "SELECT abort_call(@new, 'enough')")
	if n := get[int](t, w.hub, "SELECT count(*) FROM calls WHERE operation = 'a.child' AND status = 'aborted' AND ended_by = 'parent'"); n != 30 {
		t.Errorf("%d of 30 children are aborted", n)
	}
	if n := get[int](t, w.hub, "SELECT count(*) FROM calls WHERE stop_pending"); n != 1 {
		t.Errorf("%d spokes are to be told, want the one that holds a call", n)
	}
}

// W06: what becomes of a spoke's calls when its connection ends.
func TestW06_CallsOfALostSpoke(t *testing.T) {
	t.Parallel()
	const calls = `
		INSERT INTO calls (org_id, request_id, routed, operation, spoke_id, pinned, max_attempts, deadline_at, spoke_epoch, dispatched_at, status, attempts, started_at) VALUES
			(@org, 'pending', true, 'fs.read', @spoke, false, 1, now() + interval '1 hour', NULL, NULL, 'pending', 0, NULL),
			(@org, 'pending pinned', true, 'fs.read', @spoke, true, 1, now() + interval '1 hour', NULL, NULL, 'pending', 0, NULL),
			(@org, 'pending elsewhere', true, 'no.body', @spoke, false, 1, now() + interval '1 hour', NULL, NULL, 'pending', 0, NULL),
			(@org, 'dispatched', true, 'fs.read', @spoke, false, 1, now() + interval '1 hour', 1, now(), 'dispatched', 0, NULL),
			(@org, 'running once', true, 'fs.read', @spoke, false, 1, now() + interval '1 hour', 1, now(), 'running', 1, now()),
			(@org, 'running again', true, 'fs.read', @spoke, false, 2, now() + interval '1 hour', 1, now(), 'running', 1, now()),
			(@org, 'running twice', true, 'fs.read', @spoke, false, 2, now() + interval '1 hour', 1, now(), 'running', 2, now())`
	for how, c := range map[string]struct {
		sql  string
		want string
	}{
		"disconnected": {
			"UPDATE spokes SET status = 'disconnected', disconnected_at = now() WHERE id = @spoke",
			"dispatched: pending idle; pending: pending idle; pending elsewhere: failed builder spoke_lost; pending pinned: failed builder spoke_lost; running again: pending idle; running once: failed builder spoke_lost; running twice: failed builder spoke_lost",
		},
		"registered again": {
			"UPDATE spokes SET epoch = 2 WHERE id = @spoke",
			"dispatched: pending builder; pending: pending builder; pending elsewhere: pending builder; pending pinned: pending builder; running again: pending builder; running once: failed builder spoke_lost; running twice: failed builder spoke_lost",
		},
		"reconnecting": {
			"UPDATE spokes SET status = 'reconnecting' WHERE id = @spoke",
			"dispatched: dispatched builder; pending: pending builder; pending elsewhere: pending builder; pending pinned: pending builder; running again: running builder; running once: running builder; running twice: running builder",
		},
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			exec(t, w.hub, "INSERT INTO operation_specs (org_id, spoke_id, namespace, name, kind) VALUES (@org, @idle_spoke, 'fs', 'read', 'query')")
			exec(t, w.hub, calls)
			exec(t, w.app, c.sql)
			got := get[string](t, w.hub, `SELECT string_agg(concat_ws(' ', c.request_id || ':', c.status, s.name, c.error_code), '; ' ORDER BY c.request_id COLLATE "C")
				FROM calls c JOIN spokes s ON s.id = c.spoke_id WHERE c.org_id = @org AND c.request_id NOT IN ('r1', 'r3')`)
			if got != c.want {
				t.Errorf("%s\nwant %s", got, c.want)
			}
		})
	}
}

// W06: a call is given back to a spoke that goes at the same moment: it waits for that one, and is left with nobody.
func TestW06_NoCallIsGivenToASpokeThatGoes(t *testing.T) {
	t.Parallel()
	for how, c := range map[string]struct{ end, want string }{
		"it goes":  {"COMMIT", "failed builder spoke_lost"},
		"it stays": {"ROLLBACK", "pending idle"},
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			exec(t, w.hub, `INSERT INTO operation_specs (org_id, spoke_id, namespace, name, kind) VALUES (@org, @idle_spoke, 'fs', 'read', 'query');
				INSERT INTO calls (org_id, request_id, routed, operation, spoke_id, deadline_at) VALUES (@org, 'x', true, 'fs.read', @spoke, now() + interval '1 hour')`)
			other := w.connect(t, "org", "owner")
			exec(t, other, "BEGIN; UPDATE spokes SET status = 'disconnected', disconnected_at = now() WHERE id = @idle_spoke")
			done := make(chan struct{})
			go func() {
				defer close(done)
				if _, err := run(t.Context(), w.app, "UPDATE spokes SET status = 'disconnected', disconnected_at = now() WHERE id = @spoke"); err != nil {
					t.Error(err)
				}
			}()
			for get[int](t, w.hub, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == 0 {
				select {
				case <-done:
					t.Fatal("it did not wait")
				case <-time.After(10 * time.Millisecond):
				}
			}
			exec(t, other, c.end)
			<-done
			if got := get[string](t, w.hub, "SELECT concat_ws(' ', c.status, s.name, c.error_code) FROM calls c JOIN spokes s ON s.id = c.spoke_id WHERE c.request_id = 'x'"); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// Many takes at once, by many connections of a spoke: each call goes to one of them.
func TestTakesShareNoCall(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, `
		INSERT INTO calls (org_id, routed, operation, spoke_id, deadline_at) SELECT @org, true, 'fs.read', @idle_spoke, now() + interval '1 hour' FROM generate_series(1, 200);
		INSERT INTO call_payloads (org_id, call_id, direction, key_version, ciphertext) SELECT org_id, id, 'input', 1, 'x' FROM calls WHERE spoke_id = @idle_spoke`)
	var mu sync.Mutex
	var wg sync.WaitGroup
	taken := map[string]int{}
	for range 4 {
		conn := w.connect(t, "org", "member")
		wg.Go(func() {
			for range 30 {
				rows, err := conn.Query(t.Context(), named("SELECT id::text FROM take_calls(@idle_spoke, 1, 3, 1000000, 0) WHERE id IS NOT NULL"))
				if err != nil {
					t.Error(err)
					return
				}
				for rows.Next() {
					var id string
					if err := rows.Scan(&id); err != nil {
						t.Error(err)
					}
					mu.Lock()
					taken[id]++
					mu.Unlock()
				}
				if rows.Err() != nil {
					t.Error(rows.Err())
				}
			}
		})
	}
	wg.Wait()
	for id, n := range taken {
		if n != 1 {
			t.Errorf("%s was taken %d times", id, n)
		}
	}
	if len(taken) != 200 {
		t.Errorf("%d of 200 calls were taken", len(taken))
	}
}

// W18: a take is bounded by bytes, but never without a call.
func TestW18_TakesAreBoundedByBytes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, `
		INSERT INTO calls (org_id, routed, operation, spoke_id, deadline_at) SELECT @org, true, 'fs.read', @idle_spoke, now() + interval '1 hour' FROM generate_series(1, 5);
		INSERT INTO call_payloads (org_id, call_id, direction, key_version, ciphertext) SELECT org_id, id, 'input', 1, convert_to(repeat('x', 1000), 'UTF8') FROM calls WHERE spoke_id = @idle_spoke`)
	conn := w.connect(t, "org", "member")
	for _, want := range []int{1, 2, 2, 0} {
		bytes := map[int]int{1: 10, 2: 1500, 0: 1500}[want]
		if got := get[int](t, conn, fmt.Sprintf("SELECT count(*) FROM take_calls(@idle_spoke, 1, 5, %d, 0) WHERE id IS NOT NULL", bytes)); got != want {
			t.Errorf("%d calls with %d bytes, want %d", got, bytes, want)
		}
	}
}

// W09: payloads before skeletons, in batches, on record, and nobody waits.
func TestW09_CallsExpire(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, `UPDATE retention_policies SET call_days = 30, call_payload_days = 7 WHERE org_id = @org; UPDATE retention_policies SET call_days = NULL WHERE org_id = @other_org;
		INSERT INTO calls (org_id, id, routed, operation, status, ended_at, ended_by, output, request_id)
		SELECT o, hub_uuidv7_at((extract(epoch FROM now() - make_interval(days => d)) * 4096000)::bigint), false, 'x.y', 'completed', now(), 'recorder', '{"a": 1}', d || '/' || n
		FROM unnest(ARRAY[@org, @other_org]::uuid[]) o, unnest(ARRAY[1, 8, 31]) d, generate_series(1, 25) n`)
	// Somebody holds one of them: it is passed over, and goes later.
	other := connect(t, w.url)
	exec(t, other, "SELECT set_config('hub.org_id', @org, false), set_config('hub.account_id', @owner, false), set_config('hub.membership_level', 'owner', false)")
	exec(t, other, "BEGIN; UPDATE calls SET kind = 'query' WHERE request_id = '31/7'")
	batches := 0
	for get[int](t, w.app, "SELECT purge_calls(10)") > 0 {
		if batches++; batches > 100 {
			t.Fatal("it never ends")
		}
	}
	count := func(where string) int {
		return get[int](t, w.hub, "SELECT count(*) FROM calls WHERE request_id LIKE '%/%' AND "+where)
	}
	if count("org_id = @org") != 25+25+1 || count("org_id = @org AND output IS NULL") != 25 || count("org_id = @other_org AND output IS NOT NULL") != 75 {
		t.Errorf("%d left, %d without output, %d of the other organisation", count("org_id = @org"), count("org_id = @org AND output IS NULL"), count("org_id = @other_org"))
	}
	exec(t, other, "COMMIT")
	for get[int](t, w.app, "SELECT purge_calls(10)") > 0 {
		batches++
	}
	if n := count("org_id = @org"); n != 50 {
		t.Errorf("%d left", n)
	}
	if got := get[int](t, w.hub, "SELECT sum((changes ->> 'calls')::integer) FROM audit_logs WHERE org_id = @org AND action = 'call.purge'"); got != 25+3 { // and the fixtures, whose ids are of 1970
		t.Errorf("%d removals on record", got)
	}
	if got := get[int](t, w.hub, "SELECT count(*) FROM audit_logs WHERE org_id = @org AND action IN ('call.purge', 'call.expire_payloads')"); got != batches {
		t.Errorf("%d entries for %d batches", got, batches)
	}
}

// A call whose deadline has passed fails, once, however many sweep.
func TestSweepCalls(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, `INSERT INTO calls (org_id, routed, operation, spoke_id, deadline_at, status, spoke_epoch, dispatched_at, dispatch_expires_at)
		SELECT @org, true, 'late.' || n, @spoke, now() + CASE WHEN n <= 40 THEN interval '-1 second' ELSE interval '1 hour' END, 'dispatched', 1, now(), now() - interval '1 second' FROM generate_series(1, 60) n`)
	var wg sync.WaitGroup
	for range 4 {
		conn := connect(t, w.url)
		wg.Go(func() {
			for range 12 {
				if _, err := conn.Exec(t.Context(), "SELECT sweep_calls(10)"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for range 20 {
		exec(t, w.app, "SELECT sweep_calls(10)")
	}
	for status, want := range map[string]int{"failed": 40, "pending": 20} {
		if got := get[int](t, w.hub, "SELECT count(*) FROM calls WHERE operation LIKE 'late.%' AND status = '"+status+"'"); got != want {
			t.Errorf("%d are %s, want %d", got, status, want)
		}
	}
}
