package sql_test

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// attacks are the arguments with which each query goes for @org's rows (name, SQL, ...; else as in arguments). own are those that differ
// when the same is done by @org itself: then it finds or changes something, so that the arguments are what they claim to be.
var attacks = []struct {
	query     string
	args, own []string
}{
	{query: "GetMe"},
	{query: "CreateAccount", args: []string{"email", "'x@one'"}},
	{query: "GetAccount"}, {query: "GetAccount", args: []string{"id", "@owner"}},
	{query: "ListAccounts"},
	{query: "SearchAccounts", args: []string{"text", "'canary'"}}, {query: "SearchAccounts", args: []string{"text", "''"}},
	{query: "UpdateAccount", args: []string{"display_name", "'x'", "data_patch", `'{"a": 1}'`}}, {query: "UpdateAccount", args: []string{"access_level", "'admin'"}},
	{query: "UpdateAccount", args: []string{"set_email", "true"}}, {query: "UpdateAccount", args: []string{"id", "@co_owner", "metadata_patch", `'{"_a": {}}'`}},
	{query: "DeleteAccount"}, {query: "DeleteAccount", args: []string{"if_match", "NULL"}},
	{query: "SetAccountStatus"}, {query: "SetAccountStatus", args: []string{"id", "@co_owner", "status", "'deactivated'"}},
	{query: "ListOwnedOrganizations"},
	{query: "CreateOrganization", args: []string{"owner_id", "@co_owner", "key_hash", "sha256('new')"}},
	{query: "GetOrganization"}, {query: "ListOrganizations"},
	{query: "UpdateOrganization", args: []string{"name", "'x'", "slug", "'x'"}}, {query: "DeleteOrganization"}, {query: "DeleteOrganization", args: []string{"if_match", "NULL"}},
	{query: "TransferOrganization"}, {query: "TransferOrganization", args: []string{"account_id", "@member"}},
	{query: "AddMember", own: []string{"account_id", "@nobody"}, args: []string{"account_id", "@member"}},
	{query: "GetMember"}, {query: "ListMembers"}, {query: "UpdateMember", args: []string{"membership_level", "'admin'"}}, {query: "RemoveMember"},
	{query: "CreateAPIKey", args: []string{"account_id", "@member"}},
	{query: "GetAPIKey"}, {query: "ListAPIKeys"}, {query: "ListAPIKeys", args: []string{"account_id", "@member"}}, {query: "ListAPIKeys", args: []string{"tag", "'canary'"}},
	{query: "UpdateAPIKey", args: []string{"name", "'x'", "tags", "'{x}'"}}, {query: "RevokeAPIKey"}, {query: "SetAPIKeyEnabled", args: []string{"enabled", "false"}}, {query: "RotateAPIKey"},
	{query: "RecordKeyUses", args: []string{"times", "ARRAY[now() + interval '1 minute']"}},
	{query: "PurgeOrganizations"}, {query: "PurgeAuditLogs"}, {query: "PurgeIdempotencyKeys"},
	{query: "ClaimIdempotencyKey"}, {query: "RecordIdempotentAnswer", own: []string{"key", "'another'"}},
	{query: "ListAuditLogs"}, {query: "ListAuditLogs", args: []string{"platform", "true"}}, {query: "ListAuditLogs", args: []string{"target_id", "@key"}},
	{query: "ExportAuditLogs"}, {query: "ExportAuditLogs", args: []string{"platform", "true"}},
	{query: "VerifyAuditLog"}, {query: "VerifyAuditLog", args: []string{"platform", "true"}},
	{query: "GetRetentionPolicy"}, {query: "SetRetentionPolicy", args: []string{"set_audit_days", "true", "audit_days", "7"}},

	{query: "CreateProject"}, {query: "GetProject", args: []string{"id", "@project"}}, {query: "ListProjects"}, {query: "ListProjects", args: []string{"slug", "'main'"}, own: []string{"slug", "'main'"}},
	{query: "UpdateProject", args: []string{"id", "@project", "archived", "true"}}, {query: "DeleteProject", args: []string{"id", "@project"}, own: []string{"id", "@empty_project"}},
	{query: "CreateWorkspace"}, {query: "GetWorkspace"}, {query: "ListWorkspaces"}, {query: "ListWorkspaces", args: []string{"name", "'main'"}}, {query: "UpdateWorkspace"}, {query: "DeleteWorkspace"}, {query: "DeleteWorkspace", args: []string{"if_match", "NULL"}},
	{query: "CreateSession"}, {query: "CreateSession", args: []string{"parent_id", "@session", "role_name", "'builder'"}},
	{query: "GetSession"}, {query: "ListSessions"}, {query: "ListSessions", args: []string{"project_id", "@project"}}, {query: "ListSessions", args: []string{"account_id", "@member"}}, {query: "ListSessions", args: []string{"parent_id", "@session"}},
	{query: "ListSessions", args: []string{"source_id", "'s1'"}}, {query: "ListSessions", args: []string{"role_name", "'builder'"}},
	{query: "UpdateSession", args: []string{"title", "'x'", "run_state", "'ended'"}}, {query: "LockSession"}, {query: "DeleteSession"}, {query: "DeleteSession", args: []string{"if_match", "NULL"}},
	{query: "AppendMessages"}, {query: "ListMessages"}, {query: "GetMessage"},
	{query: "RegisterImportedRoles", args: []string{"names", "'{builder,x}'"}},
	{query: "ImportSession", args: []string{"id", "@new", "source_id", "'s1'"}}, {query: "ImportSession", args: []string{"id", "@session", "source_id", "'s1'", "source_parent_id", "'s2'"}},
	{query: "GetSessionBySource", args: []string{"source_id", "'s1'"}},
	{query: "ImportMessages", args: []string{"session_id", "@imported", "ids", "ARRAY[@new, '" + anotherNew + "']::uuid[]"}},
	{query: "ListBornMessages"}, {query: "ListImportedMessages"},
	{query: "ImportParts", args: []string{"message_ids", "ARRAY[@message, @message]::uuid[]", "ids", "ARRAY[@new, '" + anotherNew + "']::uuid[]", "source_ids", "'{p8,p9}'"}},
	{query: "DeletePartsMissingFromImport", args: []string{"session_id", "@imported", "message_ids", "ARRAY[@high]::uuid[]", "source_ids", "'{}'"}},
	{query: "DeleteMessagesMissingFromImport", args: []string{"session_id", "@imported", "source_ids", "'{}'"}},
	{query: "CreateRole"}, {query: "GetRole", args: []string{"id", "@role"}}, {query: "ListRoles", args: []string{"name", "NULL"}}, {query: "ListRoles", args: []string{"name", "'builder'"}}, {query: "UpdateRole", args: []string{"id", "@role", "prompt", "'x'"}},
	{query: "DeleteRole", args: []string{"id", "@role"}}, {query: "SyncRoles"}, {query: "SyncRoles", args: []string{"names", "'{builder}'"}},
	{query: "ListChildSessions"}, {query: "GetSessionUsage"}, {query: "ArchiveSession"}, {query: "ForkSession"}, {query: "CopyMessages"}, {query: "ListSessionTreeForExport"}, {query: "PurgeDeletedSource"},
	{query: "DeleteMessage"}, {query: "SearchSessions", args: []string{"query", "'canary'"}},
	{query: "PurgeDeletedSessions"}, {query: "ExpireSessions"},
	{query: "CreateTask", args: []string{"slug", "'new'"}}, {query: "GetTask"}, {query: "ListTasks"}, {query: "UpdateTask"}, {query: "DeleteTask"}, {query: "AddDependencies", args: []string{"id", "@free_task"}},
	{query: "AddDependency", args: []string{"id", "@free_task"}}, {query: "RemoveDependency", args: []string{"id", "@waiting_task"}}, {query: "ListDependencies", args: []string{"id", "@waiting_task"}},
	{query: "AddTaskNote"}, {query: "ListTaskNotes"}, {query: "GetTaskDocument"}, {query: "ListTaskStatusChanges", args: []string{"id", "@held_task"}},
	{query: "ClaimTask", args: []string{"session_id", "@child"}}, {query: "ClaimNextTask", args: []string{"session_id", "@child"}}, {query: "ExtendClaim", args: []string{"id", "@held_task"}}, {query: "EndClaim", args: []string{"id", "@held_task"}},
	{query: "SetTaskAside"}, {query: "LockProjectOfTask"}, {query: "LockProject"}, {query: "ListTasksForSync"}, {query: "ListDependencyEdges"}, {query: "LockTasks"}, {query: "ListTaskFiles"}, {query: "ListTaskGraph"},
	{query: "CreateTasksFromFiles", args: []string{"tasks", `'[{"slug":"n","name":"n","path":"n","body":"","frontmatter":"","base":{},"status":"pending"}]'`}},
	{query: "UpdateTasksFromFiles", args: []string{"tasks", "jsonb_build_array(jsonb_build_object('id', @task, 'name', 'n', 'path', 'n'))"}}, {query: "ArchiveTasks"}, {query: "RemoveDependencies"},
	{query: "AddDependenciesOfTasks", args: []string{"dependent_ids", "ARRAY[@free_task]::uuid[]"}},
	{query: "CreateMapping", args: []string{"session_id", "@imported"}}, {query: "GetMapping"}, {query: "ListMappings"}, {query: "ListMappings", args: []string{"session_id", "@child", "workspace_id", "@workspace"}}, {query: "ListMappings", args: []string{"session_id", "@child", "spoke_id", "@spoke"}}, {query: "EndMapping"}, {query: "ReturnExpiredTasks"},
	{query: "CreateAnomalyType"}, {query: "GetAnomalyType"}, {query: "ListAnomalyTypes"}, {query: "UpdateAnomalyType", args: []string{"severity", "'low'"}}, {query: "DeleteAnomalyType"}, {query: "DeleteAnomalyType", args: []string{"if_match", "NULL"}},
	{query: "ReportDetection"}, {query: "ReportDetection", args: []string{"anomaly_type", "'HIGH_ERROR_COUNT'", "severity", "'critical'"}}, {query: "GetDetection"}, {query: "ListDetections"}, {query: "ListDetections", args: []string{"session_id", "@session"}},
	{query: "ListDetections", args: []string{"project_id", "@project"}}, {query: "ListDetections", args: []string{"anomaly_type", "'HIGH_ERROR_COUNT'"}}, {query: "AcknowledgeDetection"}, {query: "ResolveDetection"},
	{query: "GetWatchPolicy"}, {query: "SetWatchPolicy", args: []string{"error_minutes", "7"}}, {query: "WatchSessions"},
	{query: "RegisterSpoke", args: []string{"name", "'builder'"}}, {query: "GetSpoke"}, {query: "ListSpokes"}, {query: "ListSpokes", args: []string{"account_id", "@owner"}}, {query: "HeartbeatSpoke"}, {query: "DisconnectSpoke"},
	{query: "PutOperations"}, {query: "ListOperations"}, {query: "ListOperations", args: []string{"spoke_id", "@spoke"}}, {query: "GetOperation"}, {query: "GetOperation", args: []string{"name", "'fs.' || @spoke || '.read'"}},
	{query: "FindOperation"}, {query: "EnqueueCall"}, {query: "TakeCalls"}, {query: "LeaveTake"}, {query: "StepCall", args: []string{"status", "'failed'"}, own: []string{"id", "@held_call", "status", "'failed'", "ciphertext", "NULL"}}, {query: "GetOutputSchema"}, {query: "AbortCall"}, {query: "FetchOutput", own: []string{"call_id", "@held_call"}},
	{query: "FindWork", own: []string{"ids", "ARRAY[@spoke]::uuid[]"}}, {query: "GetCall"}, {query: "GetCallByRequest"}, {query: "ListCalls"}, {query: "ListCalls", args: []string{"spoke_id", "@spoke"}}, {query: "ListCalls", args: []string{"session_id", "@session"}}, {query: "ListCalls", args: []string{"request_id", "'r1'"}},
	{query: "RecordCall"}, {query: "RecordCall", args: []string{"request_id", "'r9'", "parent_id", "@call", "operation", "'fs.list'"}}, {query: "GetCallTree"}, {query: "AddCallEdges"}, {query: "ListCallEdges"}, {query: "GetCallStats", args: []string{"since", "'-infinity'"}},
	{query: "SweepSpokes"}, {query: "SweepCalls"}, {query: "PurgeCalls"}, {query: "PurgeCallPayloads"},
	{query: "ListImportedIDs"}, {query: "ListMessageIDsForExport"}, {query: "ListMessagesForExport"},
	{query: "AppendParts"}, {query: "ListParts"}, {query: "ListPartsByType", args: []string{"type", "'text'"}}, {query: "GetPart", args: []string{"id", "@part"}}, {query: "LockPart", args: []string{"id", "@part"}},
	{query: "UpdatePart", args: []string{"id", "@part", "data", `'{"text": "x"}'`}}, {query: "AppendPartDelta", args: []string{"id", "@part"}}, {query: "GetGrowingText", args: []string{"id", "@part"}},
	{query: "FoldPartDeltas"}, {query: "GetEventHead"}, {query: "ListEvents"}, {query: "EventPositions"}, {query: "NumberEvents"}, {query: "LeaveEventOffice"}, {query: "PurgeEvents"},
}

// servicesAttacks are those on clients, their secrets and the keys of the platform.
var servicesAttacks = []struct {
	query     string
	args, own []string
}{
	{query: "CreateClient", args: []string{"name", "'x'"}}, {query: "GetClient"}, {query: "ListClients"}, {query: "ListClients", args: []string{"name", "'main'"}}, {query: "ListClients", args: []string{"valid", "false"}},
	{query: "PatchClientConfig"}, {query: "UpdateClient", args: []string{"description", "'x'"}}, {query: "UpdateClient", args: []string{"config", "'{}'", "if_match", "NULL"}}, {query: "DeleteClient"}, {query: "DeleteClient", args: []string{"if_match", "NULL"}},
	{query: "ListClientsToValidate"}, {query: "SetClientsValid", args: []string{"valid", "'{false}'", "configs", `ARRAY['{"a": "canary"}']::jsonb[]`}},
	{query: "PutClientSecret", args: []string{"name", "'token'"}}, {query: "PutClientSecret", args: []string{"name", "'new'"}}, {query: "GetClientSecret"}, {query: "ListClientSecrets"}, {query: "RevealClientSecret"}, {query: "DeleteClientSecret"},
	{query: "ReencryptClientSecret"}, {query: "LockSecretsToRotate", args: []string{"key_version", "1", "after_id", "@zero"}}, {query: "RotateSecrets"},
	{query: "ListEncryptionKeys"}, {query: "ListOtherEncryptionKeys"}, {query: "RemoveEncryptionKey", args: []string{"version", "3"}}, {query: "StartSecretRotation"}, {query: "GetSecretRotation"}, {query: "GetRunningSecretRotation"},
	{query: "ListOrgsWithSecretsUnder", args: []string{"key_version", "1"}}, {query: "ListOrgsWithClients"}, {query: "AdvanceSecretRotation"}, {query: "CompleteSecretRotation", args: []string{"failed", "9"}},
	{query: "RegisterClientTypes"}, {query: "RegisterEncryptionKeys"},
}

func init() { attacks = append(attacks, servicesAttacks...) }

const anotherNew = "ffffffff-0000-7000-8000-00000000000e"

// upkeep are queries that do what is due, for all organisations and whoever asks, and why that is no way in.
var upkeep = map[string]string{
	"PurgeOrganizations":   "removes what its organisation has marked as deleted",
	"PurgeAuditLogs":       "removes what its organisation does not keep any more",
	"PurgeIdempotencyKeys": "removes what is older than a day",
	"ReturnExpiredTasks":   "takes tasks back whose lease has run out",
	"PurgeDeletedSessions": "removes what is left of deleted sessions",
	"ExpireSessions":       "deletes archived sessions that their organisation does not keep any more",
	"PurgeDeletedSource":   "removes what is left of a deleted session of one's own",
	"FoldPartDeltas":       "writes what has streamed in a minute ago where it belongs",
	"EventPositions":       "says how far the feeds of organisations have come that one can name",
	"NumberEvents":         "numbers what has happened",
	"LeaveEventOffice":     "lets another server number what happens, if one knows the secret of the one that does",
	"PurgeEvents":          "removes what is older than seven days",
	"WatchSessions":        "looks whether something is wrong with sessions, for each organisation by itself",
	"SweepSpokes":          "marks spokes whose lease ran out",
	"SweepCalls":           "fails calls whose deadline has passed",
	"PurgeCalls":           "removes what its organisation does not keep any more",
	"PurgeCallPayloads":    "removes outputs that nobody fetched",
	"FindWork":             "says of ids that the asker names whether there is something to do",
	"ListEncryptionKeys":   "tells fingerprints and counts of the platform, to its admins", "ListOtherEncryptionKeys": "alike", "GetSecretRotation": "alike", "GetRunningSecretRotation": "alike",
	"StartSecretRotation": "the platform's keys, by its admins", "RemoveEncryptionKey": "alike", "RegisterClientTypes": "what a hub brings, at its start", "RegisterEncryptionKeys": "alike",
	"AdvanceSecretRotation": "counts what the hub has done", "CompleteSecretRotation": "alike", "ListOrgsWithSecretsUnder": "tells the hub where it has work, and nobody who is signed in", "ListOrgsWithClients": "alike",
}

var uuidText = regexp.MustCompile(`[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

// outcome is what came of a query: its rows as text, or the refusal; and the checksums afterwards.
type outcome struct {
	rows []string
	tag  pgconn.CommandTag
	err  error
	sums map[string]string
}

// attack runs a query as hub_app with some settings, deferred triggers included, and takes it back.
func attack(t *testing.T, hub *pgx.Conn, settings, execute, without string) (o outcome) {
	t.Helper()
	exec(t, hub, "BEGIN; SET LOCAL ROLE hub_app;"+settings)
	defer exec(t, hub, "ROLLBACK")
	rows, err := hub.Query(t.Context(), named(execute), pgx.QueryExecModeSimpleProtocol)
	if err == nil {
		for rows.Next() {
			var row []string
			for _, value := range rows.RawValues() { // text, as the protocol is the simple one
				row = append(row, string(value))
			}
			o.rows = append(o.rows, strings.Join(row, "|"))
		}
		err = rows.Err()
		o.tag = rows.CommandTag()
	}
	if err == nil {
		_, err = hub.Exec(t.Context(), "SET CONSTRAINTS ALL IMMEDIATE")
	}
	if o.err = err; err == nil {
		exec(t, hub, "RESET ROLE")
		o.sums = checksums(t, hub, without)
	}
	return o
}

// newTarget is a world in which everything of @org's and @other_org's can be told: by its ids, and by the word canary.
func newTarget(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	exec(t, w.hub, views)
	exec(t, w.hub, fmt.Sprintf(importMessage, "@org, @high, @imported")+";"+fmt.Sprintf(importPart, "@org, DEFAULT, @imported, @high"))
	exec(t, w.hub, `
		SET session_replication_role = replica;
		UPDATE accounts SET display_name = 'canary', email = CASE WHEN kind = 'human' THEN 'canary@' || id END, data = '{"a": "canary"}', metadata = '{"_a": {"a": "canary"}}' WHERE kind <> 'system';
		UPDATE organizations SET name = 'canary', data = '{"a": "canary"}', metadata = '{"_a": {"a": "canary"}}';
		UPDATE organization_members SET metadata = '{"_a": {"a": "canary"}}';
		UPDATE api_keys SET name = 'canary', tags = '{canary}', metadata = '{"_a": {"a": "canary"}}';
		UPDATE projects SET name = 'canary', description = 'canary', data = '{"a": "canary"}', metadata = '{"_a": {"a": "canary"}}';
		UPDATE workspaces SET path = '/canary', metadata = '{"_a": {"a": "canary"}}';
		UPDATE roles SET description = 'canary', prompt = 'canary', data = '{"a": "canary"}', metadata = '{"_a": {"a": "canary"}}';
		UPDATE sessions SET title = 'canary', data = '{"a": "canary"}', metadata = '{"_a": {"a": "canary"}}';
		UPDATE messages SET data = '{"a": "canary"}', metadata = '{"_a": {"a": "canary"}}';
		UPDATE parts SET data = '{"a": "canary"}', metadata = '{"_a": {"a": "canary"}}';
		UPDATE tasks SET name = 'canary', body = 'canary', tags = '{canary}', metadata = '{"_a": {"a": "canary"}}';
		UPDATE task_notes SET body = 'canary';
		UPDATE mappings SET reason = 'canary', metadata = '{"_a": {"a": "canary"}}';
		UPDATE detections SET reason = 'canary', evidence = '{"a": "canary"}', metadata = '{"_a": {"a": "canary"}}';
		UPDATE anomaly_types SET description = 'canary', metadata = '{"_a": {"a": "canary"}}';
		UPDATE watch_policies SET metadata = '{"_a": {"a": "canary"}}';
		UPDATE watch_rounds SET watched_at = now();
		UPDATE spokes SET version = 'canary', take_expires_at = '2036-01-01', data = '{"a": "canary"}', metadata = '{"_a": {"a": "canary"}}';
		UPDATE operation_specs SET title = 'canary', description = 'canary', metadata = '{"_a": {"a": "canary"}}';
		UPDATE calls SET input = '{"a": "canary"}', output = '{"a": "canary"}', error = '{"a": "canary"}', metadata = '{"_a": {"a": "canary"}}';
		UPDATE call_payloads SET ciphertext = 'canary';
		UPDATE idempotency_keys SET body = 'canary', headers = '{"a": "canary"}';
		UPDATE clients SET description = 'canary', config = '{"a": "canary"}', metadata = '{"_a": {"a": "canary"}}';
		UPDATE client_secrets SET metadata = '{"_a": {"a": "canary"}}';
		UPDATE retention_policies SET metadata = '{"_a": {"a": "canary"}}';
		INSERT INTO search_entries (org_id, session_id, vector) SELECT org_id, id, search_vector('canary') FROM sessions;
		SET session_replication_role = origin;
		SELECT number_events(@new, 100000)`)
	return w
}

// idsOf are all ids in the rows of some tables.
func idsOf(t *testing.T, hub *pgx.Conn, tables []string) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, table := range tables {
		for _, row := range list[string](t, hub, "SELECT to_jsonb(r)::text FROM "+table+" r") {
			for _, id := range uuidText.FindAllString(row, -1) {
				found[id] = true
			}
		}
	}
	for _, name := range []string{"system", "platform", "zero"} {
		delete(found, ids[name])
	}
	return found
}

// leaks is the first thing in the rows that is secret and was not in the question.
func leaks(o outcome, question string, secret map[string]bool) string {
	question = named(question)
	for _, row := range o.rows {
		if strings.Contains(row, "canary") || strings.Contains(row, `\x`+"63616e617279") { // in hex, as bytea is
			return row
		}
		for _, id := range uuidText.FindAllString(row, -1) {
			if secret[id] && !strings.Contains(question, id) {
				return row
			}
		}
	}
	return ""
}

// refusals are the ways in which an attack may be refused: a privilege or rule of who may, a constraint, no key.
var refusals = regexp.MustCompile(`^(42501|23\d{3}|28000)$`)

// Every query, as another organisation and as nobody, with arguments that name @org's rows: not a row of theirs is returned, and not one is changed.
func TestX01_NoQueryReachesAnotherOrganisation(t *testing.T) {
	t.Parallel()
	w := newTarget(t)
	tables := list[string](t, w.hub, "SELECT name FROM tables WHERE tenant IS NOT NULL OR control_plane AND name NOT IN ('encryption_keys', 'secret_rotations')")
	secret := idsOf(t, w.hub, tables)
	if len(secret) < 50 {
		t.Fatalf("only %d ids", len(secret))
	}
	exec(t, w.hub, `
		BEGIN; SET CONSTRAINTS ALL DEFERRED;
		INSERT INTO accounts (id, kind, display_name) VALUES (@third_owner, 'human', 'third');`+fmt.Sprintf(newOrganization, "@third_org, 'third', 'Third', @third_owner")+`; COMMIT;
		INSERT INTO api_keys (org_id, id, account_id, name, key_hash, scopes) VALUES (@third_org, @third_key, @third_owner, 'third', sha256('third'), '{*}')`)
	before := checksums(t, w.hub, "")
	beforeButUses := checksums(t, w.hub, usesLeftOut)

	tried := map[string]bool{}
	all := map[string]query{}
	exec(t, w.hub, "SET ROLE hub_app")
	for _, q := range queries(t) {
		all[q.name] = q
		q.prepare(t, w.hub)
	}
	exec(t, w.hub, "RESET ROLE")
	refused := 0
	for _, a := range attacks {
		q, ok := all[a.query]
		if !ok {
			t.Errorf("there is no query %s", a.query)
			continue
		}
		tried[a.query] = true
		execute := q.execute(t, a.args...)

		// What it is when it is one's own.
		own := attack(t, w.hub, as("owner", "platform", "'on'", "key_scopes", "'* platform:*'"), q.execute(t, slices.Concat(a.own, a.args)...), "")
		_, isUpkeep := upkeep[a.query]
		if own.err != nil {
			t.Errorf("%s by @org itself: %s", execute, spell(own.err))
		} else if touched := !maps.Equal(of(own.sums, "org"), of(before, "org")); !touched && leaks(own, "", secret) == "" && len(own.rows) == 0 && !isUpkeep {
			t.Errorf("%s by @org itself finds and changes nothing", execute)
		}

		for who, settings := range map[string]string{"@third_org": acting("third_org", "third_owner", true), "nobody": ""} {
			without, untouched := "", before
			if a.query == "RecordKeyUses" {
				without, untouched = usesLeftOut, beforeButUses
			}
			got := attack(t, w.hub, settings, execute, without)
			if got.err != nil {
				var pgErr *pgconn.PgError
				if !errors.As(got.err, &pgErr) || !refusals.MatchString(pgErr.Code) {
					t.Errorf("%s as %s: %s", execute, who, spell(got.err))
				}
				refused++
				continue
			}
			if row := leaks(got, execute, secret); row != "" && !(who == "nobody" && (strings.HasPrefix(a.query, "ListOrgsWith") || a.query == "GetRunningSecretRotation")) {
				t.Errorf("%s as %s returns %s", execute, who, row)
			}
			if who == "nobody" && !isUpkeep && !strings.Contains(a.query, "Claim") && len(got.rows) > 0 && !allEmpty(got.rows) {
				t.Errorf("%s as nobody returns %q", execute, got.rows)
			}
			for _, org := range []string{"org", "other_org"} {
				difference(t, execute+" as "+who+" has changed or removed of @"+org, execute+" as "+who+" has added to @"+org, spellSums(of(untouched, org)), spellSums(of(got.sums, org)))
			}
			if platform, was := got.sums["accounts"], untouched["accounts"]; platform != was {
				t.Errorf("%s as %s has changed accounts of no organisation", execute, who)
			}
		}
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
	for name := range all {
		if !tried[name] {
			t.Errorf("%s: say in attacks how it would go for another organisation's rows", name)
		}
	}
}

// usesLeftOut is what RecordKeyUses writes.
const usesLeftOut = " - 'last_used_at' - 'updated_at'"

func spellSums(sums map[string]string) []string {
	var spelled []string
	for key, sum := range sums {
		spelled = append(spelled, key+" "+sum)
	}
	return spelled
}

// allEmpty says whether rows hold nothing but NULLs and zeros: sums of nothing.
func allEmpty(rows []string) bool {
	return !slices.ContainsFunc(rows, func(row string) bool { return strings.Trim(row, `|0\x`) != "" })
}

// A key that is limited to projects reaches nothing of others, in its own organisation, whatever the query.
func TestW01_NoQueryReachesBeyondAKeysProjects(t *testing.T) {
	t.Parallel()
	w := newTarget(t)
	limited := []string{"projects", "workspaces", "sessions", "messages", "parts"}
	secret := idsOf(t, w.hub, limited)
	for _, id := range append(list[string](t, w.hub, "SELECT id::text FROM accounts UNION ALL SELECT id::text FROM organizations"), ids["empty_project"]) {
		delete(secret, id)
	}
	before := checksums(t, w.hub, "")
	settings := as("admin", "membership_level", "'member'", "project_ids", "'{' || @empty_project || '}'")
	exec(t, w.hub, "SET ROLE hub_app")
	all := map[string]query{}
	for _, q := range queries(t) {
		all[q.name] = q
		q.prepare(t, w.hub)
	}
	exec(t, w.hub, "RESET ROLE")
	canary := regexp.MustCompile("canary")
	for _, a := range attacks {
		execute := all[a.query].execute(t, a.args...)
		got := attack(t, w.hub, settings, execute, "")
		if got.err != nil {
			var pgErr *pgconn.PgError
			if !errors.As(got.err, &pgErr) || !refusals.MatchString(pgErr.Code) {
				t.Errorf("%s: %s", execute, spell(got.err))
			}
			continue
		}
		for i, row := range got.rows { // the accounts and the organisation are its own
			got.rows[i] = canary.ReplaceAllString(row, "")
		}
		if row := leaks(got, execute, secret); row != "" {
			t.Errorf("%s returns %s", execute, row)
		}
		for _, table := range limited {
			if key := ids["org"] + " " + table; got.sums[key] != before[key] {
				t.Errorf("%s has changed %s", execute, table)
			}
		}
	}
	// The same without the limit.
	own := attack(t, w.hub, as("admin", "membership_level", "'member'"), all["ListSessions"].execute(t), "")
	if len(own.rows) != 3 || own.err != nil {
		t.Errorf("without the limit there are %d sessions (%v)", len(own.rows), own.err)
	}
}
