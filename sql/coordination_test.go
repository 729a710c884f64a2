package sql_test

import (
	"fmt"
	"slices"
	"testing"
)

const coordinationFixture = `
INSERT INTO mappings (org_id, id, kind, project_id, session_id, task_id, lease_seconds) VALUES
	(@org, @mapping, 'assignment', @project, @session, @held_task, 300), (@other_org, @other_mapping, 'assignment', @other_project, @other_session, @other_task, 300);
INSERT INTO mappings (org_id, id, kind, project_id, session_id, parent_session_id) VALUES (@org, @delegation, 'delegation', @project, @child, @session);
INSERT INTO workspaces (org_id, id, project_id, name, path) VALUES (@org, @task_workspace, @task_project, 'main', '/srv/tasks');
INSERT INTO mappings (org_id, id, kind, project_id, session_id, spoke_id, workspace_id) VALUES (@org, @placement, 'placement', @project, @child, @spoke, @workspace);`

const place = "INSERT INTO mappings (org_id, kind, project_id, session_id, spoke_id, workspace_id) VALUES "

const claim = "INSERT INTO mappings (org_id, kind, project_id, session_id, task_id, lease_seconds) VALUES "

var coordinationRules = []ruleCase{
	{rule: "mapping_status_transitions_pkey", hub: true, sql: "INSERT INTO mapping_status_transitions (from_status, to_status) VALUES ('active', ??)", bad: []string{"'failed'"}, good: []string{"'active'"}},

	{rule: "mappings_tenant", sql: claim + "(??, 'assignment', @project, @child, @free_task, 9)", bad: []string{"@other_org", "@new"}, good: []string{"@org"}},
	{
		rule: "mappings_limited", before: "INSERT INTO sessions (org_id, id, project_id) VALUES (@org, @new, @task_project); SELECT set_config('hub.project_ids', '{' || @task_project || '}', true)",
		sql: claim + "(@org, 'assignment', ??, 9)", bad: []string{"@project, @child, @free_task"}, good: []string{"@task_project, @new, @empty_task"},
	},
	{rule: "mappings_pkey", hub: true, sql: "INSERT INTO mappings (org_id, id, kind, project_id, session_id, task_id, lease_seconds) VALUES (@org, ??, 'assignment', @project, @child, @free_task, 9)", bad: []string{"@mapping"}, good: []string{"@new", "@other_mapping"}},
	{rule: "mappings_id_version_check", hub: true, sql: "INSERT INTO mappings (org_id, id, kind, project_id, session_id, task_id, lease_seconds) VALUES (@org, ??, 'assignment', @project, @child, @free_task, 9)", bad: notUUIDv7, good: uuidv7},
	// S13: session, task and parent session are of the mapping's own project.
	{rule: "mappings_session_id_fkey", sql: claim + "(@org, 'assignment', ??, 9)", bad: []string{"@project, @new, @free_task", "@project, @other_session, @free_task", "@task_project, @child, @empty_task"}, good: []string{"@project, @child, @free_task"}},
	{rule: "mappings_task_id_fkey", hub: true, before: "ALTER TABLE mappings DISABLE TRIGGER mappings_task_status_agrees", sql: claim + "(@org, 'assignment', @project, @child, ??, 9)", bad: []string{"@new", "@empty_task", "@other_task"}, good: []string{"@free_task"}},
	{rule: "mappings_parent_session_id_fkey", sql: "INSERT INTO mappings (org_id, kind, project_id, session_id, parent_session_id) VALUES (@org, 'delegation', @project, @imported, ??)", bad: []string{"@new", "@other_session"}, good: []string{"@session", "@child"}},
	// W20: what each kind has, and has not.
	{rule: "mappings_kind_check", hub: true, sql: "INSERT INTO mappings (org_id, project_id, session_id, kind, spoke_id, parent_session_id) VALUES (@org, @project, @imported, ??, NULL)", bad: []string{"'x', NULL", "'', NULL"}, good: []string{"'placement', @spoke"}},
	{rule: "mappings_task_of_assignment_check", sql: "INSERT INTO mappings (org_id, project_id, session_id, kind, lease_seconds, parent_session_id, spoke_id, task_id) VALUES (@org, @project, @imported, ??)",
		bad: []string{"'assignment', 9, NULL, NULL, NULL", "'delegation', NULL, @session, NULL, @free_task", "'placement', NULL, NULL, @spoke, @free_task"}, good: []string{"'assignment', 9, NULL, NULL, @free_task", "'delegation', NULL, @session, NULL, NULL", "'placement', NULL, NULL, @spoke, NULL"}},
	{rule: "mappings_lease_of_assignment_check", sql: "INSERT INTO mappings (org_id, project_id, session_id, kind, task_id, parent_session_id, spoke_id, lease_seconds) VALUES (@org, @project, @imported, ??)",
		bad: []string{"'assignment', @free_task, NULL, NULL, NULL", "'delegation', NULL, @session, NULL, 9", "'placement', NULL, NULL, @spoke, 9"}, good: []string{"'assignment', @free_task, NULL, NULL, 9", "'delegation', NULL, @session, NULL, NULL", "'placement', NULL, NULL, @spoke, NULL"}},
	{rule: "mappings_lease_of_assignment_check", hub: true, before: "ALTER TABLE mappings DISABLE TRIGGER USER", sql: "UPDATE mappings SET lease_expires_at = ?? WHERE id = @mapping", bad: []string{"NULL"}, good: []string{"now()"}},
	{rule: "mappings_parent_of_delegation_check", sql: "INSERT INTO mappings (org_id, project_id, session_id, kind, task_id, spoke_id, lease_seconds, parent_session_id) VALUES (@org, @project, @imported, ??)",
		bad: []string{"'assignment', @free_task, NULL, 9, @session", "'delegation', NULL, NULL, NULL, NULL", "'placement', NULL, @spoke, NULL, @session"}, good: []string{"'assignment', @free_task, NULL, 9, NULL", "'delegation', NULL, NULL, NULL, @session", "'placement', NULL, @spoke, NULL, NULL"}},
	{rule: "mappings_spoke_of_placement_check", sql: "INSERT INTO mappings (org_id, project_id, session_id, kind, task_id, lease_seconds, parent_session_id, spoke_id) VALUES (@org, @project, @imported, ??)",
		bad: []string{"'assignment', @free_task, 9, NULL, @spoke", "'delegation', NULL, NULL, @session, @spoke"}, good: []string{"'assignment', @free_task, 9, NULL, NULL", "'delegation', NULL, NULL, @session, NULL", "'placement', NULL, NULL, NULL, @spoke"}},
	{rule: "mappings_workspace_of_placement_check", sql: "INSERT INTO mappings (org_id, project_id, session_id, kind, task_id, lease_seconds, parent_session_id, workspace_id) VALUES (@org, @project, @imported, ??)",
		bad: []string{"'assignment', @free_task, 9, NULL, @workspace", "'delegation', NULL, NULL, @session, @workspace"}, good: []string{"'assignment', @free_task, 9, NULL, NULL", "'delegation', NULL, NULL, @session, NULL", "'placement', NULL, NULL, NULL, @workspace"}},
	{rule: "mappings_placement_has_place", sql: place + "(@org, 'placement', @project, @imported, ??)", bad: []string{"NULL, NULL"}, good: []string{"@spoke, NULL", "NULL, @workspace", "@spoke, @workspace"}},
	{rule: "mappings_spoke_id_fkey", sql: place + "(@org, 'placement', @project, @imported, ??, @workspace)", bad: []string{"@new", "@other_spoke"}, good: []string{"@spoke", "@idle_spoke", "NULL"}},
	// S13: a placement's workspace is of its project.
	{rule: "mappings_workspace_id_fkey", sql: place + "(@org, 'placement', @project, @imported, @spoke, ??)", bad: []string{"@new", "@other_workspace", "@task_workspace"}, good: []string{"@workspace", "NULL"}},
	{rule: "mappings_spoke_disconnected", sql: place + "(@org, 'placement', @project, @imported, ??, @workspace)", bad: []string{"@gone_spoke"}, good: []string{"@spoke"}},
	{
		rule: "mappings_place_kept", hub: true, sql: "UPDATE mappings SET ?? WHERE id = @placement",
		bad: []string{"spoke_id = @idle_spoke", "spoke_id = NULL", "workspace_id = NULL", "workspace_id = @task_workspace", "spoke_id = NULL, workspace_id = NULL"}, good: []string{"reason = 'x'", "spoke_id = @spoke"},
	},
	{rule: "mappings_not_own_parent_check", sql: "INSERT INTO mappings (org_id, kind, project_id, session_id, parent_session_id) VALUES (@org, 'delegation', @project, @imported, ??)", bad: []string{"@imported"}, good: []string{"@session"}},
	{rule: "mappings_lease_length_check", sql: claim + "(@org, 'assignment', @project, @child, @free_task, ??)", bad: []string{"0", "-1", "86401"}, good: []string{"1", "86400"}},
	{rule: "mappings_status_check", hub: true, before: "ALTER TABLE mappings DISABLE TRIGGER USER", sql: "UPDATE mappings SET ended_at = now(), status = ?? WHERE id = @delegation", bad: []string{"'over'", "''"}, good: []string{"'completed'", "'failed'", "'aborted'"}},
	{rule: "mappings_ended_has_time_check", hub: true, before: "ALTER TABLE mappings DISABLE TRIGGER USER", sql: "UPDATE mappings SET ?? WHERE id = @delegation", bad: []string{"status = 'failed'", "ended_at = now()"}, good: []string{"status = 'failed', ended_at = now()"}},
	{rule: "mappings_reason_length_check", sql: "UPDATE mappings SET reason = ?? WHERE id = @mapping", bad: []string{"repeat('ä', 2001)"}, good: []string{"''", "repeat('ä', 2000)"}},
	{rule: "mappings_metadata_check", sql: "UPDATE mappings SET metadata = ?? WHERE id = @mapping", bad: notMetadata, good: metadata},
	// W20: one at a time of each kind; W11: one at a time for each task.
	{rule: "mappings_session_active_key", sql: claim + "(@org, 'assignment', @project, ??, @free_task, 9)", bad: []string{"@session"}, good: []string{"@child"}},
	{rule: "mappings_session_active_key", sql: "INSERT INTO mappings (org_id, kind, project_id, session_id, parent_session_id) VALUES (@org, 'delegation', @project, ??, @session)", bad: []string{"@child"}, good: []string{"@imported"}},
	{rule: "mappings_session_active_key", sql: place + "(@org, 'placement', @project, ??, NULL, @workspace)", bad: []string{"@child"}, good: []string{"@imported", "@session"}},
	{rule: "mappings_task_active_key", hub: true, before: "ALTER TABLE mappings DISABLE TRIGGER mappings_begin", sql: "INSERT INTO mappings (org_id, kind, project_id, session_id, task_id, lease_seconds, lease_expires_at) VALUES (@org, 'assignment', @project, @child, ??, 9, now())", bad: []string{"@held_task"}, good: []string{"@free_task"}},
	{
		rule: "mappings_identity_immutable", hub: true, before: "UPDATE mappings SET status = 'aborted' WHERE id = @delegation", sql: "UPDATE mappings SET ?? WHERE id = @delegation",
		bad:  []string{"id = @new", "org_id = @other_org", "project_id = @task_project", "session_id = @imported", "parent_session_id = @imported", "kind = 'assignment'", "task_id = @task", "created_at = created_at - interval '1 hour'"},
		good: []string{"reason = 'x'", "org_id = @org"},
	},
	// S14
	{rule: "mappings_status_transition", before: "UPDATE mappings SET status = 'aborted' WHERE id = @delegation", sql: "UPDATE mappings SET status = ?? WHERE id = @delegation", bad: []string{"'active'", "'completed'", "'failed'"}, good: []string{"'aborted'"}},
	// X04
	{rule: "mappings_session_over", before: "UPDATE sessions SET archived_at = now() WHERE id = @imported", sql: claim + "(@org, 'assignment', @project, ??, @free_task, 9)", bad: []string{"@imported"}, good: []string{"@child"}},
	{rule: "mappings_session_over", before: "UPDATE sessions SET run_state = 'ended' WHERE id = @imported", sql: claim + "(@org, 'assignment', @project, ??, @free_task, 9)", bad: []string{"@imported"}, good: []string{"@child"}},
	{rule: "task_already_claimed", sql: claim + "(@org, 'assignment', @project, @child, ??, 9)", bad: []string{"@held_task"}, good: []string{"@free_task"}},
	{rule: "task_not_ready", sql: claim + "(@org, 'assignment', @project, @child, ??, 9)", bad: []string{"@waiting_task"}, good: []string{"@task"}},
	{rule: "task_not_pending", before: "UPDATE tasks SET archived_at = now() WHERE id = @task", sql: claim + "(@org, 'assignment', @project, @child, ??, 9)", bad: []string{"@task"}, good: []string{"@free_task"}},
	{rule: "task_not_pending", hub: true, before: "UPDATE tasks SET status = 'blocked' WHERE id = @task", sql: claim + "(@org, 'assignment', @project, @child, ??, 9)", bad: []string{"@task"}, good: []string{"@free_task"}},
	{rule: "task_not_held", sql: "SELECT FROM end_claim(@held_task, ??, 'completed', 'completed', '')", bad: []string{"@new", "@delegation", "@other_mapping"}, good: []string{"@mapping"}},
	{rule: "task_not_held", sql: "SELECT FROM extend_claim(@held_task, ??)", bad: []string{"@new", "@delegation", "@other_mapping"}, good: []string{"@mapping"}},
	{rule: "task_not_held", sql: "SELECT move_task(@task, ??, '')", bad: []string{"'completed'", "'failed'", "'in-progress'"}, good: []string{"'blocked'"}},
	{rule: "task_status_stands_against", sql: "SELECT FROM set_task_aside(??, '{pending}', 'blocked', '')", bad: []string{"@held_task"}, good: []string{"@task"}},
	// W11
	{rule: "tasks_in_progress_is_assigned", hub: true, sql: "UPDATE tasks SET status = ?? WHERE id = @task", bad: []string{"'in-progress'"}, good: []string{"'blocked'"}},
	{rule: "tasks_in_progress_is_assigned", sql: "SELECT move_task(??, 'pending', '')", bad: []string{"@held_task"}, good: []string{"@free_task"}},
	{rule: "mappings_task_status_agrees", hub: true, before: "ALTER TABLE mappings DISABLE TRIGGER mappings_task_moved", sql: "UPDATE mappings SET ?? WHERE id = @mapping", bad: []string{"status = 'completed'"}, good: []string{"reason = 'x'"}},

	{rule: "sessions_project_id_id_key", hub: true, before: "ALTER TABLE parts DISABLE TRIGGER ALL; ALTER TABLE sessions DROP CONSTRAINT sessions_pkey CASCADE", sql: "INSERT INTO sessions (org_id, id, project_id) VALUES (@org, ??, @project)", bad: []string{"@session"}, good: []string{"@new"}},
}

var coordinationDeletes = []deleteCase{
	// W11: the task of a session that is deleted is there to be claimed again.
	{fk: "mappings_session_id_fkey", delete: "DELETE FROM sessions WHERE id = @session", gone: "SELECT NOT EXISTS (SELECT FROM mappings WHERE id = @mapping) AND (SELECT status = 'pending' FROM tasks WHERE id = @held_task)"},
	{fk: "mappings_parent_session_id_fkey", delete: "DELETE FROM sessions WHERE id = @session", gone: "SELECT NOT EXISTS (SELECT FROM mappings WHERE id = @delegation)"},
	// W20: a placement loses what is gone, and with the last of it ends.
	{fk: "mappings_spoke_id_fkey", delete: "DELETE FROM spokes WHERE id = @spoke", gone: "SELECT spoke_id IS NULL AND workspace_id = @workspace AND status = 'active' AND ended_at IS NULL FROM mappings WHERE id = @placement"},
	{
		fk: "mappings_spoke_id_fkey", before: "DELETE FROM workspaces WHERE id = @workspace", delete: "DELETE FROM spokes WHERE id = @spoke",
		gone: "SELECT spoke_id IS NULL AND workspace_id IS NULL AND status = 'aborted' AND reason = 'Its place is gone.' AND ended_at IS NOT NULL FROM mappings WHERE id = @placement",
	},
	{fk: "mappings_workspace_id_fkey", delete: "DELETE FROM workspaces WHERE id = @workspace", gone: "SELECT workspace_id IS NULL AND spoke_id = @spoke AND status = 'active' FROM mappings WHERE id = @placement"},
	{
		fk: "mappings_workspace_id_fkey", before: "DELETE FROM spokes WHERE id = @spoke", delete: "DELETE FROM workspaces WHERE id = @workspace",
		gone: "SELECT workspace_id IS NULL AND status = 'aborted' AND revision = 3 FROM mappings WHERE id = @placement",
	},
	{
		fk: "mappings_workspace_id_fkey", before: "DELETE FROM spokes WHERE id = @spoke; UPDATE mappings SET status = 'completed', reason = 'done' WHERE id = @placement", delete: "DELETE FROM workspaces WHERE id = @workspace",
		gone: "SELECT workspace_id IS NULL AND status = 'completed' AND reason = 'done' FROM mappings WHERE id = @placement",
	},
	{fk: "mappings_task_id_fkey", delete: "DELETE FROM tasks WHERE id = @held_task", gone: "SELECT NOT EXISTS (SELECT FROM mappings WHERE id = @mapping)"},
}

func TestX02_CoordinationRules(t *testing.T) {
	t.Parallel()
	checkRules(t, coordinationRules)
}

func TestC14_CoordinationDeletes(t *testing.T) {
	t.Parallel()
	checkDeletes(t, coordinationDeletes)
}

// A task and its assignment move together, whoever moves one of them.
func TestW11_ATaskIsInProgressWhileItIsAssigned(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct{ what, sql, task, mapping, reason string }{
		{"nothing", "SELECT 1", "in-progress", "active", ""},
		{"completed", "SELECT FROM end_claim(@held_task, @mapping, 'completed', 'completed', 'done')", "completed", "completed", "done"},
		{"failed", "SELECT FROM end_claim(@held_task, @mapping, 'failed', 'failed', 'broke')", "failed", "failed", "broke"},
		{"released", "SELECT FROM end_claim(@held_task, @mapping, 'aborted', 'pending', 'tired')", "pending", "aborted", "tired"},
		{"blocked", "SELECT FROM end_claim(@held_task, @mapping, 'aborted', 'blocked', 'no key')", "blocked", "aborted", "no key"},
		{"mapping ended", "UPDATE mappings SET status = 'failed', reason = 'x' WHERE id = @mapping", "failed", "failed", "x"},
		{"mapping deleted", "DELETE FROM mappings WHERE id = @mapping", "pending", "", "The assignment was deleted."},
		{"session archived", "UPDATE sessions SET archived_at = now() WHERE id = @session", "pending", "aborted", "The session is over."},
		{"session ended", "UPDATE sessions SET run_state = 'ended' WHERE id = @session", "pending", "aborted", "The session is over."},
		{"session deleted", "DELETE FROM sessions WHERE id = @session", "pending", "", "The assignment was deleted."},
		{"task archived", "UPDATE tasks SET archived_at = now() WHERE id = @held_task", "pending", "aborted", "The task was put aside."},
		{"lease expired", "UPDATE mappings SET lease_expires_at = now() - interval '1 second' WHERE id = @mapping; SELECT return_expired_tasks(10)", "pending", "aborted", "The lease expired."},
		{"lease expired, found by a claim", "UPDATE mappings SET lease_expires_at = now() - interval '1 second' WHERE id = @mapping; SELECT return_expired_in_project(@project)", "pending", "aborted", "The lease expired."},
	} {
		t.Run(c.what, func(t *testing.T) {
			exec(t, w.app, "BEGIN")
			defer exec(t, w.app, "ROLLBACK")
			exec(t, w.app, c.sql)
			exec(t, w.app, "SET CONSTRAINTS ALL IMMEDIATE")
			if got := get[string](t, w.app, `SELECT concat_ws('/', t.status, (SELECT m.status FROM mappings m WHERE m.id = @mapping), t.started_at IS NOT NULL, t.completed_at IS NOT NULL) FROM tasks t WHERE t.id = @held_task`); got != join(c.task, c.mapping) {
				t.Errorf("%s, want %s", got, join(c.task, c.mapping))
			}
			if c.reason != "" {
				if got := get[string](t, w.app, "SELECT concat_ws('/', from_status, to_status, reason, session_id = @session, mapping_id = @mapping) FROM task_status_changes WHERE task_id = @held_task ORDER BY id DESC LIMIT 1"); got != "in-progress/"+c.task+"/"+c.reason+"/t/t" && c.what != "blocked" {
					t.Errorf("history: %s", got)
				}
			}
		})
	}
}

func join(task, mapping string) string {
	all := task
	if mapping != "" {
		all += "/" + mapping
	}
	started, finished := "/f", "/f"
	if task != "pending" {
		started = "/t"
	}
	if task == "completed" || task == "failed" {
		finished = "/t"
	}
	return all + started + finished
}

// C06: the names that readers see are the task's, as they are now.
func TestC06_MappingDetailsFollowTheTask(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.app, "UPDATE tasks SET slug = 'renamed', name = 'Renamed' WHERE id = @held_task")
	if got := get[string](t, w.app, "SELECT concat_ws('/', task_slug, task_name) FROM mapping_details WHERE id = @mapping"); got != "renamed/Renamed" {
		t.Error(got)
	}
}

// A placement ends with its session, and when its spoke is gone for good; not while the spoke may still come back.
func TestW20_WhatEndsAPlacement(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct{ what, sql, status, reason string }{
		{"nothing", "SELECT 1", "active", ""},
		{"session archived", "UPDATE sessions SET archived_at = now() WHERE id = @child", "aborted", "The session is over."},
		{"session ended", "UPDATE sessions SET run_state = 'ended' WHERE id = @child", "aborted", "The session is over."},
		{"session deleted", "SELECT delete_session(@child, false)", "", ""},
		{"ended", "SELECT FROM end_mapping(@placement, 'completed', 'done')", "completed", "done"},
		{"spoke reconnecting", "UPDATE spokes SET status = 'reconnecting' WHERE id = @spoke", "active", ""},
		{"spoke registered anew", "UPDATE spokes SET epoch = epoch + 1 WHERE id = @spoke", "active", ""},
		{"spoke disconnected", "UPDATE spokes SET status = 'disconnected', disconnected_at = now() WHERE id = @spoke", "aborted", "The spoke disconnected."},
		{"spoke swept", "UPDATE spokes SET status = 'reconnecting', lease_expires_at = now() - interval '1 day' WHERE id = @spoke; SELECT sweep_spokes(10)", "aborted", "The spoke disconnected."},
		{"another spoke disconnected", "UPDATE spokes SET status = 'disconnected', disconnected_at = now() WHERE id = @idle_spoke", "active", ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			exec(t, w.app, "BEGIN")
			defer exec(t, w.app, "ROLLBACK")
			exec(t, w.app, c.sql)
			exec(t, w.app, "SET CONSTRAINTS ALL IMMEDIATE")
			got := list[string](t, w.app, "SELECT status || '/' || reason || '/' || (ended_at IS NOT NULL) FROM mappings WHERE id = @placement")
			want := []string{fmt.Sprintf("%s/%s/%v", c.status, c.reason, c.status != "active")}
			if c.status == "" {
				want = []string{}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

// A placement on a spoke that is being disconnected does not outlive it.
func TestW20_PlacementRacesDisconnect(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := w.connect(t, "org", "owner")
	exec(t, w.app, "BEGIN")
	exec(t, w.app, place+"(@org, 'placement', @project, @imported, @spoke, @workspace)")
	done := make(chan error, 1)
	go func() {
		_, err := run(t.Context(), other, "UPDATE spokes SET status = 'disconnected', disconnected_at = now() WHERE id = @spoke")
		done <- err
	}()
	for get[int](t, w.hub, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == 0 {
		if len(done) > 0 {
			t.Fatal("the disconnection did not wait for the placement")
		}
	}
	exec(t, w.app, "COMMIT")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := get[int](t, w.hub, "SELECT count(*) FROM mappings WHERE kind = 'placement' AND status = 'active'"); n != 0 {
		t.Errorf("%d placements on a spoke that is gone", n)
	}
}

// A key that is limited to other projects makes none, and sees none.
func TestW20_PlacementsOfOtherProjectsAreOutOfReach(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.app, "SELECT set_config('hub.project_ids', '{' || @task_project || '}', false)")
	if n := get[int](t, w.app, "SELECT count(*) FROM mappings"); n != 0 {
		t.Errorf("it sees %d", n)
	}
	if n := len(list[string](t, w.app, "SELECT id::text FROM create_mapping('placement', @imported, NULL, @spoke, NULL, '{}')")); n != 0 {
		t.Errorf("it made %d", n)
	}
}
