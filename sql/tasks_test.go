package sql_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

const tasksFixture = `
INSERT INTO projects (org_id, id, slug, name) VALUES (@org, @task_project, 'tasks', 'Tasks');
INSERT INTO tasks (org_id, id, project_id, slug, name, path, tags) VALUES
	(@org, @task, @project, 'a', 'A', 'g/a.md', '{x}'), (@org, @waiting_task, @project, 'b', 'B', 'g/b.md', '{}'), (@org, @free_task, @project, 'c', 'C', 'c.md', '{}'),
	(@org, @held_task, @project, 'd', 'D', 'd.md', '{}'), (@org, @empty_task, @task_project, 'a', 'A', 'a.md', '{}'), (@other_org, @other_task, @other_project, 'a', 'A', 'a.md', '{}'),
	(@other_org, @other_waiting_task, @other_project, 'b', 'B', 'b.md', '{}');
INSERT INTO task_dependencies (org_id, project_id, dependent_task_id, depends_on_task_id) VALUES
	(@org, @project, @waiting_task, @task), (@other_org, @other_project, @other_waiting_task, @other_task);
INSERT INTO task_notes (org_id, project_id, task_id, body) VALUES (@org, @project, @task, 'one'), (@other_org, @other_project, @other_task, 'one');`

// finish and claim are what makes situations: hub's superuser moves tasks as the functions do.
const newTask = "INSERT INTO tasks (org_id, project_id, slug, name, path, %s) VALUES (@org, @project, 'x', 'x', 'x.md', ??)"

var tasksRules = []ruleCase{
	{rule: "task_status_transitions_pkey", hub: true, sql: "INSERT INTO task_status_transitions (from_status, to_status) VALUES ('pending', ??)", bad: []string{"'in-progress'"}, good: []string{"'failed'"}},

	{rule: "tasks_tenant", sql: "INSERT INTO tasks (org_id, project_id, slug, name, path) VALUES (??, @project, 'x', 'x', 'x')", bad: []string{"@other_org", "@new"}, good: []string{"@org"}},
	// api_keys.resources: a key that is limited to one project writes nothing into another one.
	{rule: "tasks_limited", before: "SELECT set_config('hub.project_ids', '{' || @task_project || '}', true)", sql: "INSERT INTO tasks (org_id, project_id, slug, name, path) VALUES (@org, ??, 'x', 'x', 'x')", bad: []string{"@project"}, good: []string{"@task_project"}},
	{
		rule: "task_dependencies_limited", before: "INSERT INTO tasks (org_id, id, project_id, slug, name, path) VALUES (@org, @new, @task_project, 'x', 'x', 'x'); SELECT set_config('hub.project_ids', '{' || @task_project || '}', true)",
		sql: "INSERT INTO task_dependencies (org_id, project_id, dependent_task_id, depends_on_task_id) VALUES (@org, ??)", bad: []string{"@project, @free_task, @task"}, good: []string{"@task_project, @new, @empty_task"},
	},
	{rule: "task_notes_limited", before: "SELECT set_config('hub.project_ids', '{' || @task_project || '}', true)", sql: "INSERT INTO task_notes (org_id, project_id, task_id, body) VALUES (@org, ??, 'x')", bad: []string{"@project, @task"}, good: []string{"@task_project, @empty_task"}},
	{rule: "tasks_pkey", sql: "INSERT INTO tasks (org_id, id, project_id, slug, name, path) VALUES (@org, ??, @project, 'x', 'x', 'x')", bad: []string{"@task", "@empty_task"}, good: []string{"@new", "@other_task"}},
	{rule: "tasks_id_version_check", sql: "INSERT INTO tasks (org_id, id, project_id, slug, name, path) VALUES (@org, ??, @project, 'x', 'x', 'x')", bad: notUUIDv7, good: uuidv7},
	{
		rule: "tasks_project_id_id_key", hub: true, before: "ALTER TABLE tasks DROP CONSTRAINT tasks_pkey",
		sql: "INSERT INTO tasks (org_id, id, project_id, slug, name, path) VALUES (@org, ??, @project, 'x', 'x', 'x')", bad: []string{"@task"}, good: []string{"@empty_task"},
	},
	{rule: "tasks_slug_key", sql: "INSERT INTO tasks (org_id, project_id, slug, name, path) VALUES (@org, ??, 'c', 'x', 'x')", bad: []string{"@project"}, good: []string{"@empty_project"}},
	{rule: "tasks_project_id_fkey", sql: "INSERT INTO tasks (org_id, project_id, slug, name, path) VALUES (@org, ??, 'x', 'x', 'x')", bad: []string{"@new", "@other_project"}, good: []string{"@project"}},
	{rule: "tasks_project_id_fkey_in_use", sql: "DELETE FROM projects WHERE id = ??", bad: []string{"@task_project"}, good: []string{"@empty_project"}},
	{
		rule: "tasks_slug_shape_check", sql: "UPDATE tasks SET slug = ?? WHERE id = @task", bad: []string{"''", "' a'", "'a '", `E'a\nb'`, `E'a\n'`, "repeat('a', 501)", "repeat('ä', 251)"},
		good: []string{"'a/b'", "'ä 1'", "'A_b.c'", "'😀'", "repeat('a', 500)"},
	},
	{rule: "tasks_name_length_check", sql: "UPDATE tasks SET name = ?? WHERE id = @task", bad: []string{"''", "repeat('ä', 1001)"}, good: []string{"'x'", "repeat('ä', 1000)"}},
	{
		rule: "tasks_path_shape_check", sql: "UPDATE tasks SET path = ?? WHERE id = @task", bad: []string{"''", "'/a'", "'a//b'", "'../a'", "'a/../b'", "'./a'", "'a/'", `'a\b'`, `E'a\nb'`, "repeat('a', 1001)"},
		good: []string{"'a.md'", "'a/b c/ä.md'", "'.a/..b/c..'", "repeat('a', 1000)"},
	},
	{rule: "tasks_tags_shape_check", sql: "UPDATE tasks SET tags = ?? WHERE id = @task", bad: []string{"'{NULL}'", "array_fill('x'::text, ARRAY[101])", "ARRAY[repeat('a', 10001)]"}, good: []string{"'{}'", "array_fill('x'::text, ARRAY[100])", "ARRAY[repeat('a', 10000)]"}},
	{rule: "tasks_assignee_length_check", sql: "UPDATE tasks SET assignee = ?? WHERE id = @task", bad: []string{"''", "repeat('ä', 201)"}, good: []string{"NULL", "'x'", "repeat('ä', 200)"}},
	{rule: "tasks_due_length_check", sql: "UPDATE tasks SET due = ?? WHERE id = @task", bad: []string{"''", "repeat('ä', 201)"}, good: []string{"NULL", "'tomorrow'", "repeat('ä', 200)"}},
	{rule: "tasks_body_length_check", sql: "UPDATE tasks SET body = ?? WHERE id = @task", bad: []string{"repeat('a', 1048577)"}, good: []string{"''", "repeat('a', 1048576)"}},
	{rule: "tasks_frontmatter_length_check", sql: "UPDATE tasks SET base = '{}', frontmatter = ?? WHERE id = @task", bad: []string{"repeat('a', 65537)"}, good: []string{"''", "repeat('a', 65536)"}},
	{rule: "tasks_base_whole_check", sql: "UPDATE tasks SET ?? WHERE id = @task", bad: []string{"base = '{}'", "frontmatter = 'x'"}, good: []string{"base = '{}', frontmatter = 'x'", "base = NULL, frontmatter = NULL"}},
	{rule: "tasks_metadata_check", sql: "UPDATE tasks SET metadata = ?? WHERE id = @task", bad: notMetadata, good: metadata},
	{rule: "tasks_finished_has_time_check", hub: true, before: "SET LOCAL session_replication_role = replica", sql: "UPDATE tasks SET ?? WHERE id = @task", bad: []string{"status = 'completed'", "completed_at = now()"}, good: []string{"status = 'failed', completed_at = now()", "status = 'blocked'"}},
	{
		rule: "tasks_identity_immutable", sql: "UPDATE tasks SET ?? WHERE id = @empty_task", hub: true,
		bad: []string{"id = @new", "org_id = @other_org", "project_id = @project", "created_at = created_at - interval '1 hour'"}, good: []string{"slug = 'x', name = 'x'", "org_id = @org"},
	},
	// C07: a new task may take these from its file, and only these.
	{rule: "tasks_new_status", sql: fmt.Sprintf(newTask, "status"), bad: []string{"'in-progress'"}, good: []string{"'pending'", "'completed'", "'failed'", "'blocked'"}},
	// X06
	{rule: "tasks_status_transition", hub: true, sql: "UPDATE tasks SET status = ?? WHERE id = @task", bad: []string{"'completed'", "'failed'"}, good: []string{"'blocked'", "'pending'"}},
	{rule: "tasks_status_transition", hub: true, before: "UPDATE tasks SET status = 'blocked' WHERE id = @task", sql: "UPDATE tasks SET status = ?? WHERE id = @task", bad: []string{"'completed'", "'failed'", "'in-progress'"}, good: []string{"'blocked'", "'pending'"}},

	{rule: "task_status_changes_pkey", hub: true, before: "INSERT INTO task_status_changes (org_id, id, project_id, task_id, from_status, to_status) VALUES (@org, @high, @project, @task, 'pending', 'blocked')", sql: "INSERT INTO task_status_changes (org_id, id, project_id, task_id, from_status, to_status) VALUES (@org, ??, @project, @task, 'pending', 'blocked')", bad: []string{"@high"}, good: []string{"@new"}},
	{rule: "task_status_changes_id_version_check", hub: true, sql: "INSERT INTO task_status_changes (org_id, id, project_id, task_id, from_status, to_status) VALUES (@org, ??, @project, @task, 'pending', 'blocked')", bad: notUUIDv7, good: uuidv7},
	{rule: "task_status_changes_task_id_fkey", hub: true, sql: "INSERT INTO task_status_changes (org_id, project_id, task_id, from_status, to_status) VALUES (@org, @project, ??, 'pending', 'blocked')", bad: []string{"@new", "@empty_task", "@other_task"}, good: []string{"@task"}},
	{rule: "task_status_changes_append_only", hub: true, sql: "?? FROM task_status_changes WHERE task_id = @held_task", bad: []string{"DELETE"}, good: []string{"SELECT"}},
	{rule: "task_status_changes_append_only", hub: true, sql: "UPDATE ?? WHERE org_id = @org", bad: []string{"task_status_changes SET reason = 'x'"}, good: []string{"tasks SET name = 'x'"}},

	{rule: "task_dependencies_tenant", sql: "INSERT INTO task_dependencies (org_id, project_id, dependent_task_id, depends_on_task_id) VALUES (??, @project, @free_task, @task)", bad: []string{"@other_org", "@new"}, good: []string{"@org"}},
	{rule: "task_dependencies_pkey", hub: true, before: "INSERT INTO task_dependencies (org_id, id, project_id, dependent_task_id, depends_on_task_id) VALUES (@org, @high, @project, @free_task, @held_task)", sql: "INSERT INTO task_dependencies (org_id, id, project_id, dependent_task_id, depends_on_task_id) VALUES (@org, ??, @project, @free_task, @task)", bad: []string{"@high"}, good: []string{"@new"}},
	{rule: "task_dependencies_id_version_check", hub: true, sql: "INSERT INTO task_dependencies (org_id, id, project_id, dependent_task_id, depends_on_task_id) VALUES (@org, ??, @project, @free_task, @task)", bad: notUUIDv7, good: uuidv7},
	{rule: "task_dependencies_edge_key", sql: "INSERT INTO task_dependencies (org_id, project_id, dependent_task_id, depends_on_task_id) VALUES (@org, @project, ??, @task)", bad: []string{"@waiting_task"}, good: []string{"@free_task"}},
	// C09
	{rule: "task_dependencies_dependent_task_id_fkey", sql: "INSERT INTO task_dependencies (org_id, project_id, dependent_task_id, depends_on_task_id) VALUES (@org, @project, ??, @task)", bad: []string{"@new", "@empty_task", "@other_task"}, good: []string{"@free_task"}},
	{rule: "task_dependencies_depends_on_task_id_fkey", sql: "INSERT INTO task_dependencies (org_id, project_id, dependent_task_id, depends_on_task_id) VALUES (@org, @project, @free_task, ??)", bad: []string{"@new", "@empty_task", "@other_task"}, good: []string{"@task"}},
	{rule: "task_dependencies_not_on_itself_check", sql: "INSERT INTO task_dependencies (org_id, project_id, dependent_task_id, depends_on_task_id) VALUES (@org, @project, @free_task, ??)", bad: []string{"@free_task"}, good: []string{"@task"}},
	{
		rule: "task_dependencies_acyclic", before: "INSERT INTO task_dependencies (org_id, project_id, dependent_task_id, depends_on_task_id) VALUES (@org, @project, @free_task, @waiting_task)",
		sql: "INSERT INTO task_dependencies (org_id, project_id, dependent_task_id, depends_on_task_id) VALUES (@org, @project, ??)", bad: []string{"@task, @free_task", "@task, @waiting_task"}, good: []string{"@free_task, @task", "@held_task, @free_task"},
	},
	{
		// What archived tasks wait for is no circle, until they are taken up again.
		rule: "task_dependencies_acyclic", before: "UPDATE tasks SET archived_at = now() WHERE id = @waiting_task; INSERT INTO task_dependencies (org_id, project_id, dependent_task_id, depends_on_task_id) VALUES (@org, @project, @task, @waiting_task)",
		sql: "UPDATE tasks SET archived_at = ?? WHERE id = @waiting_task", bad: []string{"NULL"}, good: []string{"now()"},
	},

	{rule: "task_notes_tenant", sql: "INSERT INTO task_notes (org_id, project_id, task_id, body) VALUES (??, @project, @task, 'x')", bad: []string{"@other_org", "@new"}, good: []string{"@org"}},
	{rule: "task_notes_pkey", hub: true, before: "SET LOCAL session_replication_role = replica; INSERT INTO task_notes (org_id, id, project_id, task_id, body) VALUES (@org, @high, @project, @task, 'x')", sql: "INSERT INTO task_notes (org_id, id, project_id, task_id, body) VALUES (@org, ??, @project, @task, 'x')", bad: []string{"@high"}, good: []string{"@new"}},
	{rule: "task_notes_id_version_check", hub: true, before: "SET LOCAL session_replication_role = replica", sql: "INSERT INTO task_notes (org_id, id, project_id, task_id, body) VALUES (@org, ??, @project, @task, 'x')", bad: notUUIDv7, good: uuidv7},
	{rule: "task_notes_task_id_fkey", sql: "INSERT INTO task_notes (org_id, project_id, task_id, body) VALUES (@org, @project, ??, 'x')", bad: []string{"@new", "@empty_task", "@other_task"}, good: []string{"@task"}},
	{rule: "task_notes_body_length_check", sql: "INSERT INTO task_notes (org_id, project_id, task_id, body) VALUES (@org, @project, @task, ??)", bad: []string{"''", "repeat('a', 65537)"}, good: []string{"'x'", "repeat('a', 65536)"}},
	{rule: "task_notes_append_only", hub: true, sql: "?? FROM task_notes WHERE task_id = @task", bad: []string{"DELETE"}, good: []string{"SELECT"}},
	{rule: "task_notes_append_only", hub: true, sql: "UPDATE ?? WHERE org_id = @org", bad: []string{"task_notes SET body = 'x'"}, good: []string{"tasks SET body = 'x'"}},
}

var tasksDeletes = []deleteCase{
	{fk: "task_status_changes_task_id_fkey", before: "UPDATE tasks SET status = 'blocked' WHERE id = @free_task", delete: "DELETE FROM tasks WHERE id = @free_task", gone: "SELECT NOT EXISTS (SELECT FROM task_status_changes WHERE task_id = @free_task)"},
	{fk: "task_dependencies_dependent_task_id_fkey", delete: "DELETE FROM tasks WHERE id = @waiting_task", gone: "SELECT NOT EXISTS (SELECT FROM task_dependencies WHERE org_id = @org) AND (SELECT downstream_count FROM tasks WHERE id = @task) = 0"},
	{fk: "task_dependencies_depends_on_task_id_fkey", delete: "DELETE FROM tasks WHERE id = @task", gone: "SELECT NOT EXISTS (SELECT FROM task_dependencies WHERE org_id = @org) AND (SELECT unmet_count FROM tasks WHERE id = @waiting_task) = 0"},
	{fk: "task_notes_task_id_fkey", delete: "DELETE FROM tasks WHERE id = @task", gone: "SELECT NOT EXISTS (SELECT FROM task_notes WHERE task_id = @task)"},
}

func TestX02_TasksRules(t *testing.T) {
	t.Parallel()
	checkRules(t, tasksRules)
}

func TestC14_TasksDeletes(t *testing.T) {
	t.Parallel()
	checkDeletes(t, tasksDeletes)
}

// What happens at run time is not hub_app's to write, whoever writes the statement.
func TestC07_RuntimeColumnsAreNotAuthored(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, set := range []string{"status = 'blocked'", "started_at = now()", "completed_at = now()", "unmet_count = 0", "failed_count = 0", "downstream_count = 9"} {
		_, err := attempt(t, w.app, "", "UPDATE tasks SET "+set+" WHERE id = @free_task")
		refuses(t, err, "42501", "")
	}
	for _, column := range []string{"started_at", "completed_at", "unmet_count", "failed_count", "downstream_count"} {
		_, err := attempt(t, w.app, "", "INSERT INTO tasks (org_id, project_id, slug, name, path, "+column+") VALUES (@org, @project, 'x', 'x', 'x', NULL)")
		refuses(t, err, "42501", "")
	}
	for _, set := range []string{"name = 'x'", "risk = 'high', scope = NULL", "archived_at = now()", "body = 'x', tags = '{y}'"} {
		if tag, err := attempt(t, w.app, "", "UPDATE tasks SET "+set+" WHERE id = @free_task"); err != nil || tag.RowsAffected() != 1 {
			t.Errorf("%s: %v %v", set, tag, err)
		}
	}
	// Insert-only, the history too.
	for _, sql := range []string{
		"UPDATE task_notes SET body = 'x'", "DELETE FROM task_notes", "INSERT INTO task_status_changes (org_id, project_id, task_id, from_status, to_status) VALUES (@org, @project, @task, 'pending', 'blocked')",
		"UPDATE task_status_changes SET reason = 'x'", "DELETE FROM task_status_changes", "INSERT INTO task_notes (org_id, project_id, task_id, body, account_id) VALUES (@org, @project, @task, 'x', @owner)",
	} {
		_, err := attempt(t, w.app, "", sql)
		refuses(t, err, "42501", "")
	}
}

// Two transactions that would each add one half of a circle: the second waits for the first, and is refused.
func TestC09_ACircleFromTwoSidesIsRefused(t *testing.T) {
	t.Parallel()
	for _, isolation := range []string{"READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"} {
		t.Run(isolation, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			other := w.connect(t, "org", "member")
			exec(t, w.app, "BEGIN ISOLATION LEVEL "+isolation)
			exec(t, other, "BEGIN ISOLATION LEVEL "+isolation)
			exec(t, other, "SELECT 1 FROM tasks") // its snapshot, where it has one, is from before
			exec(t, w.app, "INSERT INTO task_dependencies (org_id, project_id, dependent_task_id, depends_on_task_id) VALUES (@org, @project, @free_task, @held_task)")
			done := make(chan error)
			go func() {
				_, err := run(t.Context(), other, "INSERT INTO task_dependencies (org_id, project_id, dependent_task_id, depends_on_task_id) VALUES (@org, @project, @held_task, @free_task)")
				done <- err
			}()
			exec(t, w.app, "COMMIT")
			err := <-done
			if isolation == "READ COMMITTED" {
				refuses(t, err, "23514", "task_dependencies_acyclic")
			} else {
				refuses(t, err, "40001", "") // and run again it is refused as above
			}
		})
	}
}

// The counts are kept by the writes that change them, and are what counting anew gives.
func TestX04_CountsAreMaintained(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	check := func(what string) {
		t.Helper()
		if wrong := list[string](t, w.hub, `
			WITH RECURSIVE edges AS (
				SELECT d.org_id, d.depends_on_task_id AS source, d.dependent_task_id AS target FROM task_dependencies d
				JOIN tasks s ON s.id = d.depends_on_task_id AND s.archived_at IS NULL JOIN tasks t ON t.id = d.dependent_task_id AND t.archived_at IS NULL
			), below AS (SELECT source, target FROM edges UNION SELECT b.source, e.target FROM below b JOIN edges e ON e.source = b.target)
			SELECT format('%s: unmet %s, failed %s, downstream %s', t.slug, t.unmet_count, t.failed_count, t.downstream_count) FROM tasks t
			WHERE t.archived_at IS NULL AND (t.unmet_count, t.failed_count, t.downstream_count) IS DISTINCT FROM (
				(SELECT count(*) FROM edges e JOIN tasks s ON s.id = e.source WHERE e.target = t.id AND s.status <> 'completed'),
				(SELECT count(*) FROM edges e JOIN tasks s ON s.id = e.source WHERE e.target = t.id AND s.status = 'failed'),
				(SELECT count(DISTINCT b.target) FROM below b WHERE b.source = t.id))`); len(wrong) > 0 {
			t.Errorf("%s: %v", what, wrong)
		}
	}
	check("the fixture")
	exec(t, w.app, "INSERT INTO tasks (org_id, project_id, slug, name, path) SELECT @org, @empty_project, 'n' || n, 'n', 'n' FROM generate_series(1, 300) n")
	exec(t, w.app, `INSERT INTO task_dependencies (org_id, project_id, dependent_task_id, depends_on_task_id)
		SELECT DISTINCT t.org_id, t.project_id, t.id, s.id FROM generate_series(2, 300) n, generate_series(1, 3) k
		JOIN LATERAL (SELECT 1) one ON true JOIN tasks t ON true JOIN tasks s ON true
		WHERE t.project_id = @empty_project AND s.project_id = @empty_project AND t.slug = 'n' || n AND s.slug = 'n' || (1 + (n * 7919 * k) % (n - 1))`)
	check("600 edges")
	exec(t, w.app, "DELETE FROM task_dependencies WHERE dependent_task_id IN (SELECT id FROM tasks WHERE slug ~ 'n.*7$')")
	check("fewer edges")
	exec(t, w.app, "UPDATE tasks SET archived_at = now() WHERE slug ~ 'n.*3$'")
	check("archived")
	exec(t, w.app, "UPDATE tasks SET archived_at = NULL WHERE slug ~ 'n.*13$'")
	check("taken up again")
	exec(t, w.hub, "SET session_replication_role = origin; UPDATE tasks SET status = 'blocked' WHERE slug ~ 'n.*1$'")
	exec(t, w.hub, "INSERT INTO task_status_transitions VALUES ('pending', 'completed'), ('pending', 'failed')")
	exec(t, w.hub, "UPDATE tasks SET status = 'completed' WHERE slug ~ 'n.*2$'; UPDATE tasks SET status = 'failed' WHERE slug ~ 'n.*4$'")
	check("moved")
	exec(t, w.hub, "UPDATE tasks SET status = 'pending' WHERE slug ~ 'n.*[24]$'")
	check("reopened")
	exec(t, w.app, "DELETE FROM tasks WHERE slug ~ 'n.*5$'")
	check("deleted")
	if get[int](t, w.hub, "SELECT max(downstream_count) FROM tasks") < 50 {
		t.Error("the graph is too thin to tell anything")
	}
}

// 64 writers, all there, in one order.
func TestC08_NotesOfManyWriters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var wait sync.WaitGroup
	for n := range 16 {
		conn := w.connect(t, "org", "member")
		wait.Add(1)
		go func() {
			defer wait.Done()
			for k := range 8 {
				if _, err := run(t.Context(), conn, fmt.Sprintf("INSERT INTO task_notes (org_id, project_id, task_id, body) VALUES (@org, @project, @free_task, 'note %d.%d.')", n, k)); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wait.Wait()
	if got := get[string](t, w.app, `SELECT concat_ws(' ', count(*), count(DISTINCT body), bool_and(created_at > before IS NOT FALSE), bool_and(account_id = @member))
		FROM (SELECT *, lag(created_at) OVER (ORDER BY id) AS before FROM task_notes WHERE task_id = @free_task) n`); got != "128 128 t t" {
		t.Errorf("notes, different ones, in order, signed: %s", got)
	}
	document := get[string](t, w.app, "SELECT document FROM task_documents WHERE id = @free_task")
	for n := range 16 {
		for k := range 8 {
			if strings.Count(document, fmt.Sprintf("note %d.%d.\n", n, k)) != 1 {
				t.Errorf("note %d.%d is not once in the document", n, k)
			}
		}
	}
}
