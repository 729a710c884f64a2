package sql_test

import "testing"

const projectsFixture = `
INSERT INTO projects (org_id, id, slug, name) VALUES
	(@org, @project, 'main', 'Main'), (@org, @empty_project, 'empty', 'Empty'), (@other_org, @other_project, 'other', 'Other');
INSERT INTO workspaces (org_id, id, project_id, name, path) VALUES (@org, @workspace, @project, 'main', '/srv/main'), (@other_org, @other_workspace, @other_project, 'main', '/srv/main');`

const newWorkspace = "INSERT INTO workspaces (org_id, project_id, name, path) VALUES "

var projectsRules = []ruleCase{
	{rule: "projects_tenant", sql: "INSERT INTO projects (org_id, slug, name) VALUES (??, 'x', 'x')", bad: []string{"@other_org", "@new"}, good: []string{"@org"}},
	{rule: "projects_limited", before: as("owner", "project_ids", "'{' || @new || '}'"), sql: "INSERT INTO projects (org_id, id, slug, name) VALUES (@org, ??, 'x', 'x')", bad: []string{"@high", "DEFAULT"}, good: []string{"@new"}},
	{rule: "projects_pkey", sql: "INSERT INTO projects (org_id, id, slug, name) VALUES (@org, ??, 'x', 'x')", bad: []string{"@project"}, good: []string{"@new", "@other_project"}},
	{rule: "projects_id_version_check", sql: "INSERT INTO projects (org_id, id, slug, name) VALUES (@org, ??, 'x', 'x')", bad: notUUIDv7, good: uuidv7},
	{rule: "projects_slug_key", sql: "INSERT INTO projects (org_id, slug, name) VALUES (@org, ??, 'x')", bad: []string{"'main'"}, good: []string{"'other'"}},
	{rule: "projects_slug_shape_check", sql: "UPDATE projects SET slug = ?? WHERE id = @project", bad: notSlugs, good: slugs},
	{rule: "projects_name_length_check", sql: "UPDATE projects SET name = ?? WHERE id = @project", bad: []string{"''", "repeat('ä', 201)"}, good: []string{"'x'", "repeat('ä', 200)"}},
	{rule: "projects_description_length_check", sql: "UPDATE projects SET description = ?? WHERE id = @project", bad: []string{"repeat('ä', 10001)"}, good: []string{"''", "repeat('ä', 10000)"}},
	{rule: "projects_data_object_check", sql: "UPDATE projects SET data = ?? WHERE id = @project", bad: notObjects, good: objects},
	{rule: "projects_metadata_check", sql: "UPDATE projects SET metadata = ?? WHERE id = @project", bad: notMetadata, good: metadata},
	{
		rule: "projects_identity_immutable", sql: "UPDATE projects SET ?? WHERE id = @empty_project",
		bad: []string{"id = @new", "org_id = @other_org", "created_at = created_at - interval '1 hour'"}, good: []string{"slug = 'x', name = 'x'", "org_id = @org"},
	},
	{rule: "projects_org_id_fkey", hub: true, sql: "INSERT INTO projects (org_id, slug, name) VALUES (??, 'x', 'x')", bad: []string{"@new"}, good: []string{"@org", "@other_org"}},
	{rule: "projects_org_id_fkey_in_use", hub: true, before: "DELETE FROM calls; DELETE FROM spokes; DELETE FROM sessions; DELETE FROM clients; DELETE FROM tasks; DELETE FROM roles; DELETE FROM projects WHERE org_id = @other_org", sql: "DELETE FROM organizations WHERE id = ??", bad: []string{"@org"}, good: []string{"@other_org"}},
	{rule: "workspaces_tenant", sql: newWorkspace + "(??, 'x', '/x')", bad: []string{"@other_org, @other_project"}, good: []string{"@org, @project"}},
	{rule: "workspaces_limited", before: as("owner", "project_ids", "'{' || @empty_project || '}'"), sql: newWorkspace + "(@org, ??, 'x', '/x')", bad: []string{"@project"}, good: []string{"@empty_project"}},
	{rule: "workspaces_pkey", hub: true, sql: "INSERT INTO workspaces (org_id, project_id, name, path, id) VALUES (@org, @empty_project, 'x', '/x', ??)", bad: []string{"@workspace"}, good: []string{"@new", "@other_workspace"}},
	{rule: "workspaces_id_version_check", hub: true, sql: "INSERT INTO workspaces (org_id, project_id, name, path, id) VALUES (@org, @project, 'x', '/x', ??)", bad: notUUIDv7, good: uuidv7},
	{rule: "workspaces_name_key", sql: newWorkspace + "(@org, ??, '/x')", bad: []string{"@project, 'main'"}, good: []string{"@project, 'Main'", "@empty_project, 'main'"}},
	{
		// What the primary key refuses already.
		rule: "workspaces_project_id_id_key", hub: true, before: "ALTER TABLE workspaces DROP CONSTRAINT workspaces_pkey",
		sql: "INSERT INTO workspaces (org_id, project_id, name, path, id) VALUES (@org, @project, 'x', '/x', ??)", bad: []string{"@workspace"}, good: []string{"@new"},
	},
	{rule: "workspaces_project_id_fkey", sql: newWorkspace + "(@org, ??, 'x', '/x')", bad: []string{"@new", "@other_project"}, good: []string{"@project", "@empty_project"}},
	{rule: "workspaces_name_length_check", sql: "UPDATE workspaces SET name = ?? WHERE id = @workspace", bad: []string{"''", "repeat('ä', 201)"}, good: []string{"'x'", "repeat('ä', 200)"}},
	{
		rule: "workspaces_path_shape_check", sql: "UPDATE workspaces SET path = ?? WHERE id = @workspace",
		bad:  []string{"''", "'srv'", "'./srv'", "'../srv'", "'~/srv'", "'C:srv'", `'\srv'`, "'1https://x/'", "'git@host:repo'", "E'/a\nb'", "E'/a\n'", "'/' || repeat('ä', 2000)"},
		good: []string{"'/'", "'/srv/ä b'", `'C:\srv'`, "'c:/srv'", `'\\host\share'`, "'https://host/repo.git'", "'ssh://git@host/repo'", "'file:///srv'", "'/' || repeat('a', 3999)"},
	},
	{
		rule: "workspaces_branch_shape_check", sql: "UPDATE workspaces SET branch = ?? WHERE id = @workspace",
		bad: []string{"''", "' '", "'a b'", "E'a\tb'", "E'a\n'", "repeat('a', 256)"}, good: []string{"NULL", "'main'", "'fix/ä#1'", "repeat('a', 255)"},
	},
	{rule: "workspaces_metadata_check", sql: "UPDATE workspaces SET metadata = ?? WHERE id = @workspace", bad: notMetadata, good: metadata},
	{
		rule: "workspaces_identity_immutable", hub: true, sql: "UPDATE workspaces SET ?? WHERE id = @workspace",
		bad: []string{"id = @new", "org_id = @other_org", "project_id = @empty_project", "created_at = created_at - interval '1 hour'"}, good: []string{"name = 'x'", "project_id = @project"},
	},
}

var projectsDeletes = []deleteCase{
	{fk: "workspaces_project_id_fkey", before: "INSERT INTO workspaces (org_id, project_id, name, path) VALUES (@org, @empty_project, 'x', '/x')", delete: "DELETE FROM projects WHERE id = @empty_project", gone: "SELECT count(*) = 0 FROM workspaces WHERE project_id = @empty_project"},
}

func TestC14_ProjectsDeletes(t *testing.T) {
	t.Parallel()
	checkDeletes(t, projectsDeletes)
}

func TestX02_ProjectsRules(t *testing.T) {
	t.Parallel()
	checkRules(t, projectsRules)
}
