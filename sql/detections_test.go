package sql_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

const detectionsFixture = `
INSERT INTO anomaly_types (org_id, id, name, severity) VALUES (@org, @anomaly_type, 'PROMPT_INJECTION', 'critical');
INSERT INTO detections (org_id, id, project_id, session_id, anomaly_type, severity) VALUES
	(@org, @detection, @project, @session, 'HIGH_ERROR_COUNT', 'high'), (@org, @resolved_detection, @project, @child, 'HIGH_ERROR_COUNT', 'low'),
	(@other_org, @other_detection, @other_project, @other_session, 'SESSION_STALL', 'low');
UPDATE detections SET status = 'resolved', resolution = 'fixed' WHERE id = @resolved_detection;`

const detect = "INSERT INTO detections (org_id, project_id, session_id, anomaly_type, severity) VALUES "

var notSeverities = []string{"'none'", "''", "'High'"}

var detectionsRules = []ruleCase{
	{rule: "built_in_anomalies_pkey", hub: true, sql: "INSERT INTO built_in_anomalies (name, severity, description) VALUES (??, 'low', 'x')", bad: []string{"'SESSION_STALL'"}, good: []string{"'NEW'"}},
	{rule: "detection_status_transitions_pkey", hub: true, sql: "INSERT INTO detection_status_transitions (from_status, to_status) VALUES ('open', ??)", bad: []string{"'resolved'"}, good: []string{"'open'"}},

	{rule: "anomaly_types_tenant", sql: "INSERT INTO anomaly_types (org_id, name) VALUES (??, 'X')", bad: []string{"@other_org", "@new"}, good: []string{"@org"}},
	{rule: "anomaly_types_pkey", hub: true, sql: "INSERT INTO anomaly_types (org_id, name, id) VALUES (@org, 'X', ??)", bad: []string{"@anomaly_type"}, good: []string{"@new"}},
	{rule: "anomaly_types_id_version_check", hub: true, sql: "INSERT INTO anomaly_types (org_id, name, id) VALUES (@org, 'X', ??)", bad: notUUIDv7, good: uuidv7},
	{rule: "anomaly_types_name_key", sql: "INSERT INTO anomaly_types (org_id, name) VALUES (@org, ??)", bad: []string{"'PROMPT_INJECTION'", "'SESSION_STALL'"}, good: []string{"'PROMPT_INJECTIONS'"}},
	{rule: "anomaly_types_org_id_fkey", hub: true, sql: "INSERT INTO anomaly_types (org_id, name) VALUES (??, 'X')", bad: []string{"@new"}, good: []string{"@other_org"}},
	{
		rule: "anomaly_types_name_shape_check", sql: "INSERT INTO anomaly_types (org_id, name) VALUES (@org, ??)",
		bad: []string{"''", "'x'", "'X_'", "'_X'", "'X__Y'", "'1X'", "'X-Y'", "'X Y'", "'Ä'", "E'X\\n'", "repeat('X', 101)"}, good: []string{"'X'", "'X1_2Y'", "repeat('X', 100)"},
	},
	{rule: "anomaly_types_severity_check", sql: "UPDATE anomaly_types SET severity = ?? WHERE id = @anomaly_type", bad: notSeverities, good: []string{"'low'", "'medium'", "'high'", "'critical'"}},
	{rule: "anomaly_types_description_length_check", sql: "UPDATE anomaly_types SET description = ?? WHERE id = @anomaly_type", bad: []string{"repeat('ä', 10001)"}, good: []string{"''", "repeat('ä', 10000)"}},
	{rule: "anomaly_types_metadata_check", sql: "UPDATE anomaly_types SET metadata = ?? WHERE id = @anomaly_type", bad: notMetadata, good: metadata},
	{
		rule: "anomaly_types_identity_immutable", hub: true, sql: "UPDATE anomaly_types SET ?? WHERE id = @anomaly_type",
		bad: []string{"id = @new", "org_id = @other_org", "name = 'X'", "built_in = true", "created_at = created_at - interval '1 hour'"}, good: []string{"severity = 'low'", "name = 'PROMPT_INJECTION'"},
	},
	{rule: "anomaly_types_beyond_limits", state: "42501", sql: "SELECT set_config('hub.project_ids', ??, true); UPDATE anomaly_types SET severity = 'low' WHERE id = @anomaly_type", bad: []string{"'{' || @project || '}'"}, good: []string{"''"}},
	{rule: "anomaly_types_built_in", before: "DELETE FROM sessions", sql: "DELETE FROM anomaly_types WHERE org_id = @org AND ??", bad: []string{"built_in", "name = 'SESSION_STALL'"}, good: []string{"NOT built_in"}},

	{rule: "detections_tenant", sql: detect + "(??, 'SESSION_STALL', 'low')", bad: []string{"@other_org, @other_project, @other_session"}, good: []string{"@org, @project, @session"}},
	{
		rule: "detections_limited", before: "INSERT INTO sessions (org_id, id, project_id) VALUES (@org, @new, @task_project); SELECT set_config('hub.project_ids', '{' || @task_project || '}', true)",
		sql: detect + "(@org, ??, 'SESSION_STALL', 'low')", bad: []string{"@project, @session"}, good: []string{"@task_project, @new"},
	},
	{rule: "detections_pkey", hub: true, sql: "INSERT INTO detections (org_id, project_id, session_id, anomaly_type, severity, id) VALUES (@org, @project, @session, 'SESSION_STALL', 'low', ??)", bad: []string{"@detection"}, good: []string{"@new", "@other_detection"}},
	{rule: "detections_id_version_check", hub: true, sql: "INSERT INTO detections (org_id, project_id, session_id, anomaly_type, severity, id) VALUES (@org, @project, @session, 'SESSION_STALL', 'low', ??)", bad: notUUIDv7, good: uuidv7},
	// S13
	{rule: "detections_session_id_fkey", sql: detect + "(@org, ??, 'SESSION_STALL', 'low')", bad: []string{"@project, @new", "@project, @other_session", "@task_project, @session"}, good: []string{"@project, @session"}},
	{rule: "detections_anomaly_type_fkey", sql: detect + "(@org, @project, @session, ??, 'low')", bad: []string{"'NONSENSE'", "''", "'session_stall'"}, good: []string{"'SESSION_STALL'", "'PROMPT_INJECTION'"}},
	{rule: "detections_anomaly_type_fkey", hub: true, sql: detect + "(??, 'PROMPT_INJECTION', 'low')", bad: []string{"@other_org, @other_project, @other_session"}, good: []string{"@org, @project, @session"}},
	{rule: "detections_anomaly_type_fkey_in_use", before: detect + "(@org, @project, @session, 'PROMPT_INJECTION', 'low'); INSERT INTO anomaly_types (org_id, name) VALUES (@org, 'X')", sql: "DELETE FROM anomaly_types WHERE org_id = @org AND name = ??", bad: []string{"'PROMPT_INJECTION'"}, good: []string{"'X'"}},
	{rule: "detections_acknowledged_by_id_fkey", hub: true, before: "UPDATE detections SET status = 'acknowledged' WHERE id = @detection", sql: "UPDATE detections SET acknowledged_by_id = ?? WHERE id = @detection", bad: []string{"@nobody", "@other_owner", "@new"}, good: []string{"@member", "NULL"}},
	{rule: "detections_resolved_by_id_fkey", hub: true, sql: "UPDATE detections SET resolved_by_id = ?? WHERE id = @resolved_detection", bad: []string{"@nobody", "@other_owner", "@new"}, good: []string{"@member", "NULL"}},
	{rule: "detections_severity_check", sql: "UPDATE detections SET severity = ?? WHERE id = @detection", bad: notSeverities, good: []string{"'low'", "'medium'", "'high'", "'critical'"}},
	{rule: "detections_origin_check", sql: "UPDATE detections SET origin = ?? WHERE id = @detection", bad: []string{"''", "'hub'"}, good: []string{"'api'", "'watcher'"}},
	{rule: "detections_status_check", sql: "UPDATE detections SET status = ?? WHERE id = @detection", bad: []string{"''", "'over'"}, good: []string{"'open'", "'acknowledged'"}},
	{rule: "detections_resolution_check", sql: "UPDATE detections SET status = 'resolved', resolution = ?? WHERE id = @detection", bad: []string{"''", "'false positive'"}, good: []string{"'fixed'", "'false-positive'", "'expired'"}},
	{rule: "detections_reason_length_check", sql: "UPDATE detections SET reason = ?? WHERE id = @detection", bad: []string{"repeat('ä', 2001)"}, good: []string{"''", "repeat('ä', 2000)"}},
	{rule: "detections_count_check", hub: true, sql: "INSERT INTO detections (org_id, project_id, session_id, anomaly_type, severity, count) VALUES (@org, @project, @session, 'SESSION_STALL', 'low', ??)", bad: []string{"0", "-1"}, good: []string{"1", "7"}},
	{rule: "detections_seen_in_order_check", hub: true, sql: "INSERT INTO detections (org_id, project_id, session_id, anomaly_type, severity, first_seen_at) VALUES (@org, @project, @session, 'SESSION_STALL', 'low', ??)", bad: []string{"now() + interval '1 second'"}, good: []string{"now()", "now() - interval '1 day'"}},
	{
		rule: "detections_acknowledged_whole_check", hub: true, before: "ALTER TABLE detections DISABLE TRIGGER USER", sql: "UPDATE detections SET ?? WHERE id = @detection",
		bad: []string{"status = 'acknowledged'", "acknowledged_at = now()", "acknowledged_by_id = @owner"}, good: []string{"status = 'acknowledged', acknowledged_at = now()", "status = 'acknowledged', acknowledged_at = now(), acknowledged_by_id = @owner"},
	},
	{
		rule: "detections_resolved_whole_check", hub: true, before: "ALTER TABLE detections DISABLE TRIGGER USER", sql: "UPDATE detections SET ?? WHERE id = @detection",
		bad:  []string{"status = 'resolved'", "status = 'resolved', resolved_at = now()", "resolution = 'fixed'", "status = 'resolved', resolution = 'fixed'", "resolved_at = now(), resolution = 'fixed'", "resolved_by_id = @owner"},
		good: []string{"status = 'resolved', resolved_at = now(), resolution = 'fixed'", "status = 'resolved', resolved_at = now(), resolution = 'fixed', resolved_by_id = @owner"},
	},
	{rule: "detections_resolved_whole_check", sql: "UPDATE detections SET status = 'resolved', resolution = ?? WHERE id = @detection", bad: []string{"NULL"}, good: []string{"'fixed'"}},
	{rule: "detections_evidence_object_check", sql: "UPDATE detections SET evidence = ?? WHERE id = @detection", bad: notObjects, good: objects},
	{rule: "detections_metadata_check", sql: "UPDATE detections SET metadata = ?? WHERE id = @detection", bad: notMetadata, good: metadata},
	// W21: one that is open for each session and type.
	{rule: "detections_open_key", sql: detect + "(@org, @project, ??, 'low')", bad: []string{"@session, 'HIGH_ERROR_COUNT'"}, good: []string{"@session, 'SESSION_STALL'", "@child, 'HIGH_ERROR_COUNT'"}},
	{rule: "detections_open_key", before: "UPDATE detections SET status = 'acknowledged' WHERE id = @detection", sql: detect + "(@org, @project, ??, 'low')", bad: []string{"@session, 'HIGH_ERROR_COUNT'"}, good: []string{"@session, 'SESSION_STALL'"}},
	{
		rule: "detections_identity_immutable", hub: true, sql: "UPDATE detections SET ?? WHERE id = @detection",
		bad: []string{"id = @new", "org_id = @other_org", "project_id = @task_project", "session_id = @child", "anomaly_type = 'SESSION_STALL'", "first_seen_at = now() - interval '1 day'", "created_at = created_at - interval '1 hour'"}, good: []string{"severity = 'low'", "session_id = @session"},
	},
	{rule: "detections_count_rises", before: "UPDATE detections SET count = 5 WHERE id = @detection", sql: "UPDATE detections SET ?? WHERE id = @detection", bad: []string{"count = 4", "last_seen_at = last_seen_at - interval '1 second'"}, good: []string{"count = 6", "count = 5, last_seen_at = now()"}},
	{
		rule: "detections_resolved_final", hub: true, sql: "UPDATE detections SET ?? WHERE id = @resolved_detection",
		bad:  []string{"severity = 'high'", "origin = 'watcher'", "resolution = 'expired'", "reason = 'x'", "count = 2", "last_seen_at = now() + interval '1 hour'", "acknowledged_at = now()", "resolved_at = now() + interval '1 hour'", `evidence = '{"a": 1}'`},
		good: []string{"metadata = '{\"_a\": {}}'", "resolved_by_id = NULL", "resolution = 'fixed'"},
	},
	// X06
	{rule: "detections_status_transition", sql: "UPDATE detections SET status = ?? WHERE id = @resolved_detection", bad: []string{"'open'", "'acknowledged'"}, good: []string{"'resolved'"}},
	{rule: "detections_status_transition", before: "UPDATE detections SET status = 'acknowledged' WHERE id = @detection", sql: "UPDATE detections SET ?? WHERE id = @detection", bad: []string{"status = 'open'"}, good: []string{"status = 'acknowledged'", "status = 'resolved', resolution = 'fixed'"}},

	{rule: "watch_policies_pkey", hub: true, sql: "INSERT INTO watch_policies (org_id) VALUES (??)", bad: []string{"@org"}, good: []string{"@other_org"}, before: "DELETE FROM watch_policies WHERE org_id = @other_org"},
	{rule: "watch_policies_org_id_fkey", hub: true, sql: "INSERT INTO watch_policies (org_id) VALUES (??)", bad: []string{"@new"}, good: []string{"@other_org"}, before: "DELETE FROM watch_policies WHERE org_id = @other_org"},
	{rule: "watch_policies_stall_minutes_check", sql: "UPDATE watch_policies SET stall_minutes = ??", bad: []string{"0", "10081"}, good: []string{"1", "10080", "NULL"}},
	{rule: "watch_policies_error_count_check", sql: "UPDATE watch_policies SET error_count = ??", bad: []string{"0", "1001"}, good: []string{"1", "1000", "NULL"}},
	{rule: "watch_policies_error_minutes_check", sql: "UPDATE watch_policies SET error_minutes = ??", bad: []string{"0", "1441"}, good: []string{"1", "1440"}},
	{rule: "watch_policies_model_minutes_check", sql: "UPDATE watch_policies SET model_minutes = ??", bad: []string{"4", "1441"}, good: []string{"5", "1440", "NULL"}},
	{rule: "watch_policies_model_baseline_hours_check", sql: "UPDATE watch_policies SET model_baseline_hours = ??", bad: []string{"0", "721"}, good: []string{"1", "720"}},
	{rule: "watch_policies_model_turns_check", sql: "UPDATE watch_policies SET model_turns = ??", bad: []string{"4", "1001"}, good: []string{"5", "1000"}},
	{rule: "watch_policies_model_error_percent_check", sql: "UPDATE watch_policies SET model_error_percent = ??", bad: []string{"0", "101"}, good: []string{"1", "100"}},
	{rule: "watch_policies_model_latency_percent_check", sql: "UPDATE watch_policies SET model_latency_percent = ??", bad: []string{"109", "10001"}, good: []string{"110", "10000"}},
	{rule: "watch_policies_reported_days_check", sql: "UPDATE watch_policies SET reported_days = ??", bad: []string{"0", "36501"}, good: []string{"1", "36500", "NULL"}},
	{rule: "watch_policies_metadata_check", sql: "UPDATE watch_policies SET metadata = ??", bad: notMetadata, good: metadata},
	{
		rule: "watch_policies_identity_immutable", hub: true, sql: "UPDATE watch_policies SET ?? WHERE org_id = @org",
		bad: []string{"org_id = @other_org", "created_at = created_at - interval '1 hour'"}, good: []string{"error_count = 7", "org_id = @org"},
	},
	{rule: "watch_policies_beyond_limits", state: "42501", sql: "SELECT set_config('hub.project_ids', ??, true); UPDATE watch_policies SET error_count = 7", bad: []string{"'{' || @project || '}'"}, good: []string{"''"}},
	{rule: "watch_rounds_pkey", hub: true, sql: "INSERT INTO watch_rounds (org_id) VALUES (??)", bad: []string{"@org"}, good: []string{"@other_org"}, before: "DELETE FROM watch_rounds WHERE org_id = @other_org"},
	{rule: "watch_rounds_org_id_fkey", hub: true, sql: "INSERT INTO watch_rounds (org_id) VALUES (??)", bad: []string{"@new"}, good: []string{"@other_org"}, before: "DELETE FROM watch_rounds WHERE org_id = @other_org"},
}

const emptied = "DELETE FROM calls; DELETE FROM spokes; DELETE FROM sessions; DELETE FROM clients; DELETE FROM tasks; DELETE FROM projects; DELETE FROM roles"

var detectionsDeletes = []deleteCase{
	{fk: "anomaly_types_org_id_fkey", before: emptied, delete: "DELETE FROM organizations WHERE id = @org", gone: "SELECT NOT EXISTS (SELECT FROM anomaly_types WHERE org_id = @org)"},
	{fk: "watch_policies_org_id_fkey", before: emptied, delete: "DELETE FROM organizations WHERE id = @org", gone: "SELECT NOT EXISTS (SELECT FROM watch_policies WHERE org_id = @org)"},
	{fk: "watch_rounds_org_id_fkey", before: emptied, delete: "DELETE FROM organizations WHERE id = @org", gone: "SELECT NOT EXISTS (SELECT FROM watch_rounds WHERE org_id = @org)"},
	{fk: "detections_session_id_fkey", delete: "DELETE FROM sessions WHERE id = @session", gone: "SELECT NOT EXISTS (SELECT FROM detections WHERE id = @detection)"},
	{
		fk: "detections_acknowledged_by_id_fkey", before: as("member") + "UPDATE detections SET status = 'acknowledged' WHERE id = @detection;" + as("owner"), delete: "DELETE FROM organization_members WHERE account_id = @member",
		gone: "SELECT acknowledged_by_id IS NULL AND acknowledged_at IS NOT NULL FROM detections WHERE id = @detection",
	},
	{
		fk: "detections_resolved_by_id_fkey", before: as("member") + "UPDATE detections SET status = 'resolved', resolution = 'fixed' WHERE id = @detection;" + as("owner"), delete: "DELETE FROM organization_members WHERE account_id = @member",
		gone: "SELECT resolved_by_id IS NULL AND resolved_at IS NOT NULL FROM detections WHERE id = @detection",
	},
}

func TestX02_DetectionsRules(t *testing.T) {
	t.Parallel()
	checkRules(t, detectionsRules)
}

func TestC14_DetectionsDeletes(t *testing.T) {
	t.Parallel()
	checkDeletes(t, detectionsDeletes)
}

// W21: a repeat counts up and may raise the severity; what is resolved stays so, and what comes again is another one.
func TestW21_ARepeatIsTheSameDetection(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	q := queryNamed(t, "ReportDetection")
	q.prepare(t, w.app)
	const which = " FROM detections WHERE session_id = @imported"
	report := func(want string, changed ...string) {
		t.Helper()
		exec(t, w.app, q.execute(t, append([]string{"session_id", "@imported", "anomaly_type", "'SESSION_STALL'"}, changed...)...))
		if got := get[string](t, w.app, "SELECT concat_ws(' ', count(*), string_agg(concat_ws('/', status, severity, count, evidence, last_seen_at > first_seen_at), ' ' ORDER BY id))"+which); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	report("1 open/medium/1/{}/f")
	report(`1 open/medium/2/{"a": 1}/t`, "evidence", `'{"a": 1}'`)
	report(`1 open/high/3/{"a": 1}/t`, "severity", "'high'")
	report(`1 open/high/4/{"a": 1}/t`, "severity", "'low'")
	exec(t, w.app, as("member")+"UPDATE detections SET status = 'acknowledged' WHERE session_id = @imported")
	report(`1 acknowledged/high/5/{"a": 1}/t`)
	exec(t, w.app, "UPDATE detections SET status = 'resolved', resolution = 'fixed' WHERE session_id = @imported")
	if got := get[string](t, w.app, "SELECT concat_ws(' ', acknowledged_by_id = @member, resolved_by_id = @owner, resolved_at >= acknowledged_at)"+which); got != "t t t" {
		t.Errorf("who and when: %s", got)
	}
	report(`2 resolved/high/5/{"a": 1}/t open/medium/1/{}/f`)
	// Many report the same at once.
	var group sync.WaitGroup
	for range 8 {
		conn := w.connect(t, "org", "owner")
		q.prepare(t, conn)
		group.Go(func() {
			for range 5 {
				if _, err := run(t.Context(), conn, q.execute(t, "session_id", "@imported", "anomaly_type", "'SESSION_STALL'")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	report(`2 resolved/high/5/{"a": 1}/t open/medium/42/{}/t`)
	// What is deleted is not there, nor are its detections.
	exec(t, w.hub, "SELECT mark_sessions_deleted(@org, ARRAY[@imported]::uuid[])")
	if n := get[int](t, w.app, "SELECT count(*)"+which); n != 0 {
		t.Errorf("%d detections of a deleted session are seen", n)
	}
}

// due makes the watcher look now, at everything, and again at what it has seen just now.
const due = "UPDATE watch_rounds SET watched_at = '-infinity', models_watched_at = '-infinity';"

// seenLongAgo sets back what the watcher would count up only later.
const seenLongAgo = `SET session_replication_role = replica; UPDATE detections SET first_seen_at = first_seen_at - interval '11 minutes', last_seen_at = last_seen_at - interval '11 minutes', resolved_at = resolved_at - interval '11 minutes';
	SET session_replication_role = origin;`

// undetected is a world in which nothing is detected.
func undetected(t testing.TB) *world {
	t.Helper()
	w := newWorld(t)
	exec(t, w.hub, "DELETE FROM detections")
	return w
}

// watched lets the watcher look, as hub's upkeep does, and returns what it finds: session, type, status, resolution, count, severity.
func (w *world) watched(t testing.TB, before string) []string {
	t.Helper()
	exec(t, w.hub, before+due)
	nobody := connect(t, w.url)
	get[int64](t, nobody, "SELECT watch_sessions(1000)")
	if n := get[int64](t, nobody, "SELECT watch_sessions(1000)"); n != 0 {
		t.Errorf("a second look finds %d", n)
	}
	rows := list[string](t, w.hub, "SELECT concat_ws(' ', session_id, anomaly_type, status, resolution, count, severity) FROM detections WHERE origin = 'watcher' ORDER BY id")
	for i, row := range rows {
		id, rest, _ := strings.Cut(row, " ")
		rows[i] = idNames[id] + " " + rest
	}
	return rows
}

func (w *world) wantWatched(t testing.TB, before string, want ...string) {
	t.Helper()
	if got := w.watched(t, before); !slices.Equal(got, want) {
		t.Errorf("%s\nfound %q, want %q", before, got, want)
	}
}

// aged sets sessions' rows back, as if nothing had happened in them.
func aged(sessions, interval string) string {
	return fmt.Sprintf("SET session_replication_role = replica; UPDATE sessions SET updated_at = now() - interval '%s', last_activity_at = now() - interval '%[1]s' WHERE id IN (%s); SET session_replication_role = origin;", interval, sessions)
}

func TestW21_StalledSessions(t *testing.T) {
	t.Parallel()
	w := undetected(t)
	w.wantWatched(t, "")
	// Only who is running, and only after the time of its own organisation's policy.
	w.wantWatched(t, `UPDATE sessions SET run_state = 'running' WHERE id IN (@session, @child, @other_session); UPDATE sessions SET run_state = 'waiting' WHERE id = @imported;`+
		aged("@session, @imported, @other_session", "20 minutes")+aged("@child", "10 minutes")+"UPDATE watch_policies SET stall_minutes = 30 WHERE org_id = @other_org;",
		"session SESSION_STALL open 1 medium")
	if got := get[string](t, w.hub, "SELECT concat_ws(' ', evidence ->> 'minutes', evidence ? 'since', project_id = @project, acknowledged_by_id IS NULL) FROM detections"); got != "15 t t t" {
		t.Error(got)
	}
	// It is counted up while it holds, but not every minute, and with the organisation's severity only at first.
	w.wantWatched(t, "", "session SESSION_STALL open 1 medium")
	w.wantWatched(t, seenLongAgo+"UPDATE anomaly_types SET severity = 'critical' WHERE name = 'SESSION_STALL';", "session SESSION_STALL open 2 medium")
	// Something happens: it expires.
	w.wantWatched(t, "INSERT INTO messages (org_id, session_id, role) VALUES (@org, @session, 'assistant');", "session SESSION_STALL resolved expired 2 medium")
	if got := get[string](t, w.hub, "SELECT reason || (resolved_by_id IS NULL) FROM detections"); got != "It no longer holds.true" {
		t.Error(got)
	}
	// It stalls again: another one, which expires when the session is over.
	w.wantWatched(t, aged("@session", "1 hour"), "session SESSION_STALL resolved expired 2 medium", "session SESSION_STALL open 1 critical")
	w.wantWatched(t, "UPDATE sessions SET archived_at = now() WHERE id = @session;", "session SESSION_STALL resolved expired 2 medium", "session SESSION_STALL resolved expired 1 critical")
}

// What people say of a detection, the watcher minds.
func TestW21_TheWatcherMindsWhatPeopleSay(t *testing.T) {
	t.Parallel()
	w := undetected(t)
	stall := "UPDATE sessions SET run_state = 'running' WHERE id = @session AND run_state <> 'running';" + aged("@session", "1 hour")
	w.wantWatched(t, stall, "session SESSION_STALL open 1 medium")
	// Acknowledged: it stays so, and expires.
	w.wantWatched(t, "UPDATE detections SET status = 'acknowledged';"+seenLongAgo, "session SESSION_STALL acknowledged 2 medium")
	// Fixed, and it still holds: at first it is believed.
	w.wantWatched(t, "UPDATE detections SET status = 'resolved', resolution = 'fixed';", "session SESSION_STALL resolved fixed 2 medium")
	w.wantWatched(t, seenLongAgo, "session SESSION_STALL resolved fixed 2 medium", "session SESSION_STALL open 1 medium")
	// A false positive: never again in this session.
	w.wantWatched(t, "UPDATE detections SET status = 'resolved', resolution = 'false-positive' WHERE status = 'open';"+seenLongAgo+seenLongAgo,
		"session SESSION_STALL resolved fixed 2 medium", "session SESSION_STALL resolved false-positive 1 medium")
	// What somebody has reported does not expire because the watcher does not see it, but by its age.
	exec(t, w.app, detect+"(@org, @project, @child, 'SESSION_STALL', 'low'), (@org, @project, @imported, 'PROMPT_INJECTION', 'low')")
	w.watched(t, "SET session_replication_role = replica; UPDATE detections SET first_seen_at = now() - interval '31 days', last_seen_at = now() - interval '31 days' WHERE session_id = @imported; SET session_replication_role = origin;")
	if got := list[string](t, w.app, "SELECT concat_ws(' ', anomaly_type, status, resolution, nullif(reason, '')) FROM detections WHERE origin = 'api' ORDER BY 1"); !slices.Equal(got, []string{"PROMPT_INJECTION resolved expired Nobody has seen it again.", "SESSION_STALL open"}) {
		t.Errorf("%q", got)
	}
	// Nor does what the watcher has found and somebody has reported as well.
	exec(t, w.hub, "DELETE FROM detections")
	w.wantWatched(t, stall, "session SESSION_STALL open 1 medium")
	q := queryNamed(t, "ReportDetection")
	q.prepare(t, w.app)
	exec(t, w.app, q.execute(t, "anomaly_type", "'SESSION_STALL'"))
	w.watched(t, "UPDATE sessions SET run_state = 'idle' WHERE id = @session;")
	if got := list[string](t, w.app, "SELECT concat_ws(' ', origin, status, count) FROM detections"); !slices.Equal(got, []string{"api open 2"}) {
		t.Errorf("%q", got)
	}
}

const failedTools = `INSERT INTO parts (org_id, session_id, message_id, type, data) SELECT @org, %[1]s, m.id, 'tool', '{"state": {"status": "%[2]s"}}' FROM (SELECT id FROM messages WHERE session_id = %[1]s ORDER BY id LIMIT 1) m, generate_series(1, %[3]d);`

func TestW21_ManyErrors(t *testing.T) {
	t.Parallel()
	w := undetected(t)
	w.wantWatched(t, fmt.Sprintf(failedTools, "@session", "error", 9)+fmt.Sprintf(failedTools, "@session", "completed", 20))
	w.wantWatched(t, fmt.Sprintf(failedTools, "@session", "error", 1), "session HIGH_ERROR_COUNT open 1 high")
	if got := get[string](t, w.hub, "SELECT evidence FROM detections"); got != `{"minutes": 15, "failedCalls": 0, "failedTools": 10}` {
		t.Error(got)
	}
	// Fewer are enough, or more are needed: as the policy says.
	w.wantWatched(t, "UPDATE watch_policies SET error_count = 11 WHERE org_id = @org;", "session HIGH_ERROR_COUNT resolved expired 1 high")
	w.wantWatched(t, "UPDATE watch_policies SET error_count = 10 WHERE org_id = @org;", "session HIGH_ERROR_COUNT resolved expired 1 high", "session HIGH_ERROR_COUNT open 1 high")
	w.wantWatched(t, "UPDATE watch_policies SET error_count = NULL WHERE org_id = @org;", "session HIGH_ERROR_COUNT resolved expired 1 high", "session HIGH_ERROR_COUNT resolved expired 1 high")
	// Those that were begun long ago do not count: their ids say when that was.
	exec(t, w.hub, "DELETE FROM detections; DELETE FROM parts WHERE session_id = @session")
	w.wantWatched(t, `UPDATE watch_policies SET error_count = 3 WHERE org_id = @org; SET session_replication_role = replica;
		INSERT INTO parts (org_id, id, session_id, message_id, type, data) SELECT @org, hub_uuidv7_at(((extract(epoch FROM now()) - n * 600) * 4096000)::bigint), @session, @message, 'tool', '{"state": {"status": "error"}}' FROM generate_series(0, 9) n;
		SET session_replication_role = origin;`)
	w.wantWatched(t, "UPDATE watch_policies SET error_minutes = 25 WHERE org_id = @org;", "session HIGH_ERROR_COUNT open 1 high")
	// Calls of operations count by themselves.
	exec(t, w.hub, "DELETE FROM detections; DELETE FROM parts WHERE session_id = @session AND type = 'tool'")
	calls := func(n int, status string) string {
		return fmt.Sprintf(`INSERT INTO calls (org_id, routed, operation, status, session_id, ended_at, ended_by) SELECT @org, false, 'x.y', '%s', @session, now(), 'recorder' FROM generate_series(1, %d);`, status, n)
	}
	w.wantWatched(t, calls(2, "failed")+calls(9, "completed")+calls(9, "aborted")+fmt.Sprintf(failedTools, "@session", "error", 2))
	w.wantWatched(t, calls(1, "failed"), "session HIGH_ERROR_COUNT open 1 high")
}

// turns adds assistant's messages of a model in a session, as they were so many minutes ago: n of them, of which some failed, and each took some milliseconds.
func turns(session, model string, minutesAgo, n, failed, milliseconds int) string {
	return fmt.Sprintf(`SET session_replication_role = replica;
		INSERT INTO messages (org_id, id, session_id, role, data) SELECT @org, hub_uuidv7_at(((extract(epoch FROM now()) - %d * 60 - n * 0.001) * 4096000)::bigint), %s, 'assistant',
			jsonb_build_object('modelID', '%s', 'providerID', 'p', 'time', jsonb_build_object('created', 1767000000000, 'completed', 1767000000000 + %d))
			|| CASE WHEN n <= %d THEN '{"error": {"name": "APIError"}}' ELSE '{}' END::jsonb FROM generate_series(1, %d) n;
		SET session_replication_role = origin;`, minutesAgo, session, model, milliseconds, failed, n)
}

func TestW21_DegradedModels(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what, before string
		want         []string
	}{
		{"as before", turns("@session", "m", 300, 40, 4, 1000) + turns("@session", "m", 5, 20, 2, 1100), nil},
		{"fails more often", turns("@session", "m", 300, 40, 4, 1000) + turns("@session", "m", 5, 20, 7, 1000), []string{"session MODEL_DEGRADATION open 1 high"}},
		{"fails a little more often", turns("@session", "m", 300, 40, 4, 1000) + turns("@session", "m", 5, 20, 6, 1000), nil},
		{"always failed much", turns("@session", "m", 300, 40, 20, 1000) + turns("@session", "m", 5, 20, 14, 1000), nil},
		{"slower", turns("@session", "m", 300, 40, 0, 1000) + turns("@session", "m", 5, 20, 0, 3000), []string{"session MODEL_DEGRADATION open 1 high"}},
		{"a little slower", turns("@session", "m", 300, 40, 0, 1000) + turns("@session", "m", 5, 20, 0, 2999), nil},
		{"some turns are slower", turns("@session", "m", 300, 40, 0, 1000) + turns("@session", "m", 5, 11, 0, 1000) + turns("@session", "m", 6, 10, 0, 9000), nil},
		{"too few turns now", turns("@session", "m", 300, 40, 0, 1000) + turns("@session", "m", 5, 19, 19, 9000), nil},
		{"too few turns before", turns("@session", "m", 300, 19, 0, 1000) + turns("@session", "m", 5, 20, 20, 9000), nil},
		{"too long ago", turns("@session", "m", 26*60, 40, 0, 1000) + turns("@session", "m", 5, 20, 20, 9000), nil},
		{"another model", turns("@session", "m", 300, 40, 0, 1000) + turns("@session", "n", 5, 20, 20, 9000), nil},
		{"another organisation's baseline", strings.ReplaceAll(turns("@other_session", "m", 300, 40, 0, 1000), "@org", "@other_org") + turns("@session", "m", 5, 20, 20, 9000), nil},
		{"by the policy", "UPDATE watch_policies SET model_turns = 10, model_latency_percent = 150;" + turns("@session", "m", 300, 10, 0, 1000) + turns("@session", "m", 5, 10, 0, 1500), []string{"session MODEL_DEGRADATION open 1 high"}},
		{"not watched", "UPDATE watch_policies SET model_minutes = NULL;" + turns("@session", "m", 300, 40, 0, 1000) + turns("@session", "m", 5, 20, 20, 9000), nil},
		{
			"broken off by a person", turns("@session", "m", 300, 40, 0, 1000) + turns("@session", "m", 5, 40, 20, 1000) +
				`UPDATE messages SET data = jsonb_set(data, '{error,name}', '"MessageAbortedError"') WHERE data ? 'error';`, nil,
		},
		{"copied by a fork", turns("@session", "m", 300, 40, 0, 1000) + turns("@session", "m", 5, 40, 40, 1000) + `UPDATE messages SET metadata = '{"_fork": {}}' WHERE data ? 'error';`, nil},
		{
			"told of those who noticed", turns("@session", "m", 300, 40, 0, 1000) + turns("@session", "m", 5, 10, 10, 1000) + turns("@child", "m", 5, 10, 0, 1000) + turns("@imported", "m", 5, 10, 1, 1000),
			[]string{"session MODEL_DEGRADATION open 1 high", "imported MODEL_DEGRADATION open 1 high"},
		},
		{"nonsense in the data", turns("@session", "m", 5, 40, 0, 1000) + `UPDATE messages SET data = '{"modelID": 7, "time": {"created": "x", "completed": 1e300}, "error": "no"}' WHERE data ? 'modelID';`, nil},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			w := undetected(t)
			if c.want == nil {
				c.want = []string{}
			}
			w.wantWatched(t, c.before, c.want...)
			if len(c.want) > 0 { // and when it is over, it expires
				for i := range c.want {
					c.want[i] = strings.Replace(c.want[i], "open", "resolved expired", 1)
				}
				w.wantWatched(t, "DELETE FROM messages WHERE data ? 'modelID' AND session_id <> @child;", c.want...)
			}
		})
	}
	w := undetected(t)
	w.watched(t, turns("@session", "m", 300, 40, 4, 1000)+turns("@session", "m", 5, 20, 10, 3500))
	if got := get[string](t, w.hub, "SELECT evidence FROM detections"); got != `{"model": "m", "turns": 20, "before": {"hours": 24, "turns": 40, "failed": 4, "medianMilliseconds": 1000}, "failed": 10, "minutes": 30, "provider": "p", "medianMilliseconds": 3500}` {
		t.Error(got)
	}
}

// Several servers watch at once: each organisation is watched by one, and nobody waits.
func TestW21_WatchersTakeTurns(t *testing.T) {
	t.Parallel()
	w := undetected(t)
	exec(t, w.hub, "UPDATE sessions SET run_state = 'running';"+aged("SELECT id FROM sessions", "1 hour"))
	for range 5 {
		exec(t, w.hub, due+seenLongAgo)
		var group sync.WaitGroup
		for range 6 {
			conn := connect(t, w.url)
			group.Go(func() {
				if _, err := run(t.Context(), conn, "SELECT watch_sessions(1000)"); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
	}
	if got := list[string](t, w.hub, "SELECT DISTINCT anomaly_type || ' ' || count FROM detections"); !slices.Equal(got, []string{"SESSION_STALL 5"}) {
		t.Errorf("%q", got)
	}
	// A batch is a batch: what is left comes next time.
	exec(t, w.hub, "DELETE FROM detections;"+due)
	nobody := connect(t, w.url)
	var found int64
	for range 8 {
		n := get[int64](t, nobody, "SELECT watch_sessions(1)")
		if n > 1 {
			t.Errorf("%d in a batch of one", n)
		}
		found += n
		exec(t, w.hub, "UPDATE watch_rounds SET watched_at = watched_at - interval '1 hour'")
	}
	if found != 4 {
		t.Errorf("%d", found)
	}
	// A session that somebody is deleting is left alone, and keeps nobody waiting.
	exec(t, w.hub, "DELETE FROM detections;"+due)
	exec(t, w.app, "BEGIN; SELECT FROM sessions WHERE id = @session FOR UPDATE")
	get[int64](t, nobody, "SELECT watch_sessions(1000)")
	exec(t, w.app, "COMMIT")
	if n := get[int](t, w.hub, "SELECT count(*) FROM detections WHERE org_id = @org"); n != 2 {
		t.Errorf("%d", n)
	}
	// An organisation that is marked as deleted is not watched any more.
	exec(t, w.hub, "DELETE FROM detections; UPDATE organizations SET deleted_at = now() WHERE id = @org;"+due)
	get[int64](t, nobody, "SELECT watch_sessions(1000)")
	if got := list[string](t, w.hub, "SELECT DISTINCT (org_id = @other_org)::text FROM detections"); !slices.Equal(got, []string{"true"}) {
		t.Errorf("%q", got)
	}
}

// W21: the feed tells of detections, and of those of the other domains that have joined.
func TestX05_DetectionsAndWorkAreInTheFeed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	told := func(what, sql string, want ...string) {
		t.Helper()
		exec(t, w.hub, "DELETE FROM pending_events")
		exec(t, w.app, sql)
		got := list[string](t, w.hub, "SELECT concat_ws(' ', kind, action, row_id, coalesce(project_id::text, '-'), coalesce(session_id::text, '-')) FROM pending_events ORDER BY kind, action, row_id")
		for i, row := range got {
			f := strings.Fields(row)
			for j, id := range f[2:] {
				if name, ok := idNames[id]; ok {
					f[2+j] = name
				} else if len(id) > 1 {
					f[2+j] = "?"
				}
			}
			got[i] = strings.Join(f, " ")
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	told("detection", "UPDATE detections SET status = 'acknowledged' WHERE id = @detection", "detection updated detection project session")
	told("detection again", "UPDATE detections SET status = 'acknowledged' WHERE id = @detection")
	told("detection new", detect+"(@org, @project, @session, 'SESSION_STALL', 'low')", "detection created ? project session")
	told("mapping", "UPDATE mappings SET reason = 'x' WHERE id = @placement", "mapping updated placement project child")
	told("mapping's lease", "UPDATE mappings SET lease_expires_at = now() + interval '1 hour' WHERE id = @mapping")
	told("task", "UPDATE tasks SET name = 'x' WHERE id = @task", "task updated task project -")
	told("tasks", "INSERT INTO tasks (org_id, project_id, slug, name, path) SELECT @org, @project, 'n' || n, 'n', 'n' FROM generate_series(1, 2) n", "task created ? project -", "task created ? project -")
	told("claim", claim+"(@org, 'assignment', @project, @imported, @free_task, 9)", "mapping created ? project imported", "task updated free_task project -")
	told("spoke", "UPDATE spokes SET version = '2' WHERE id = @spoke", "spoke updated spoke - -")
	told("spoke's heartbeat", "UPDATE spokes SET lease_expires_at = now() + interval '1 hour' WHERE id = @spoke")
	// What goes with its session is not told of.
	told("session", "DELETE FROM sessions WHERE id = @session", "session deleted session project session", "session updated child project child", "task updated held_task project -")
	told("task deleted", "DELETE FROM tasks WHERE id = @free_task", "task deleted free_task project -")
}

// Nothing that is large is read through.
func TestW03_TheWatcherUsesIndexes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, crowd+"UPDATE sessions SET run_state = 'running' WHERE source_id ~ '7$' AND archived_at IS NULL; ANALYZE")
	plans := withPlans(t, w, "")
	for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
		exec(t, w.hub, due)
		plan := plans("SET plan_cache_mode = " + mode + "; SELECT watch_sessions(1000)")
		for _, index := range []string{"sessions_run_state_idx", "parts_failed_idx", "calls_status_idx", "messages_pkey"} {
			if !strings.Contains(plan, index) {
				t.Errorf("%s: %s is not used", mode, index)
			}
		}
		if found := seqScan.FindAllString(plan, -1); len(found) > 0 {
			t.Errorf("%s: %v\n%s", mode, found, plan)
		}
		if !regexp.MustCompile(`parts_failed_idx[^\n]*\n\s+Index Cond: [^\n]*org_id = [^\n]*id >= `).MatchString(plan) || !regexp.MustCompile(`messages_pkey[^\n]*\n\s+Index Cond: [^\n]*org_id = [^\n]*id >= `).MatchString(plan) {
			t.Errorf("%s: an index is gone through from its beginning:\n%s", mode, plan)
		}
	}
	if n := get[int](t, w.hub, "SELECT count(*) FROM detections WHERE origin = 'watcher'"); n != 0 {
		t.Errorf("%d sessions that have just been made have stalled", n)
	}
}

// What privileges leave to requests: the watcher's own columns and tables are not among it.
func TestX01_TheWatcherIsOutOfReach(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, sql := range []string{
		"INSERT INTO built_in_anomalies (name, severity, description) VALUES ('X', 'low', 'x')", "INSERT INTO detection_status_transitions (from_status, to_status) VALUES ('resolved', 'open')",
		"INSERT INTO anomaly_types (org_id, name, built_in) VALUES (@org, 'X', true)", "UPDATE anomaly_types SET built_in = false", "UPDATE anomaly_types SET name = name",
		"DELETE FROM detections", "UPDATE detections SET acknowledged_at = now()", "UPDATE detections SET resolved_by_id = NULL", "UPDATE detections SET first_seen_at = now()",
		"INSERT INTO detections (org_id, project_id, session_id, anomaly_type, severity, origin) VALUES (@org, @project, @session, 'SESSION_STALL', 'low', 'watcher')",
		"INSERT INTO watch_policies (org_id) VALUES (@org)", "DELETE FROM watch_policies", "UPDATE watch_rounds SET watched_at = now()", "DELETE FROM watch_rounds",
	} {
		_, err := attempt(t, w.app, "", sql)
		refuses(t, err, "42501", "")
	}
	// The questions that the watcher asks are asked with the rights of whoever asks them.
	for _, call := range []string{"stalled_sessions(@other_org, 1)", "failing_sessions(@other_org, 1, 1440)", "model_turns(@other_org, '-infinity', now())"} {
		if n := get[int](t, w.app, "SELECT count(*) FROM "+strings.Replace(call, "'-infinity'", "'2000-01-01'", 1)); n != 0 {
			t.Errorf("%s: %d", call, n)
		}
	}
}
