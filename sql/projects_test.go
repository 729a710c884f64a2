package sql_test

import "testing"

const projectsFixture = `
INSERT INTO projects (org_id, id, slug, name) VALUES
	(@org, @project, 'main', 'Main'), (@org, @empty_project, 'empty', 'Empty'), (@other_org, @other_project, 'other', 'Other');`

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
}

var projectsDeletes []deleteCase

func TestX02_ProjectsRules(t *testing.T) {
	t.Parallel()
	checkRules(t, projectsRules)
}
