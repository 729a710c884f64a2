package sql_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const sessionsFixture = `
INSERT INTO roles (org_id, id, name) VALUES (@org, @role, 'builder'), (@org, DEFAULT, 'unused'), (@other_org, @other_role, 'reviewer');
INSERT INTO sessions (org_id, id, project_id, parent_id, account_id, role_name, slug, source, source_id, source_updated_at) VALUES
	(@org, @session, @project, NULL, @member, 'builder', 'parent', NULL, NULL, NULL),
	(@org, @child, @project, @session, @owner, NULL, 'child', NULL, NULL, NULL),
	(@org, @imported, @project, NULL, NULL, NULL, 'imported', 'test', 's1', now()),
	(@other_org, @other_session, @other_project, NULL, @other_owner, 'reviewer', 'parent', NULL, NULL, NULL);
INSERT INTO messages (org_id, id, session_id, role) VALUES
	(@org, @message, @session, 'user'), (@org, @child_message, @child, 'user'), (@org, @second_message, @session, 'assistant'),
	(@other_org, @other_message, @other_session, 'user');
INSERT INTO parts (org_id, id, session_id, message_id, type) VALUES
	(@org, @part, @session, @message, 'text'), (@other_org, @other_part, @other_session, @other_message, 'text');
INSERT INTO messages (org_id, session_id, role, source, source_id, source_position) VALUES (@org, @imported, 'user', 'test', 'm1', 0);
INSERT INTO parts (org_id, session_id, message_id, type, source, source_id, source_position)
	SELECT org_id, session_id, id, 'text', 'test', 'p1', 0 FROM messages WHERE source_id = 'm1';
INSERT INTO parts (org_id, id, session_id, message_id, type, data) VALUES (@org, @tool, @child, @child_message, 'tool', '{"state": {"status": "running"}}');
INSERT INTO part_deltas (org_id, part_id, start_offset, text) VALUES (@org, @part, 0, 'Hello'), (@other_org, @other_part, 0, 'Hello');`

const (
	newSession = "INSERT INTO sessions (org_id, project_id, %s) VALUES (@org, @project, ??)"
	// What is imported keeps its id; what is appended gets one above the session's last.
	importMessage = "INSERT INTO messages (org_id, id, session_id, role, source, source_id, source_position) VALUES (%s, 'user', 'test', 'x', 0)"
	importPart    = "INSERT INTO parts (org_id, id, session_id, message_id, type, source, source_id, source_position) VALUES (%s, 'text', 'test', 'x', 0)"
)

const deletedSession = "UPDATE sessions SET deleted_at = now() WHERE id = @imported"

var (
	notSources = []string{"''", "'X'", "'1x'", "'-x'", "'a_b'", "'a b'", "'ä'", "E'a\\n'", "repeat('a', 41)"}
	sources    = []string{"'x'", "'opencode'", "'a-1'", "repeat('a', 40)"}

	notSourceIDs = []string{"''", "repeat('a', 201)", "repeat('ä', 101)"}
	sourceIDs    = []string{"'x'", "repeat('a', 200)", "repeat('ä', 100)"}
)

// limitedToAnotherProject is a caller whose key is limited to @empty_project, which has the session @new with the message @high.
var limitedToAnotherProject = `
	INSERT INTO sessions (org_id, id, project_id) VALUES (@org, @new, @empty_project);
	INSERT INTO messages (org_id, id, session_id, role) VALUES (@org, @high, @new, 'user');` + as("owner", "project_ids", "'{' || @empty_project || '}'")

var sessionsRules = []ruleCase{
	{rule: "roles_tenant", sql: "INSERT INTO roles (org_id, name) VALUES (??, 'x')", bad: []string{"@other_org", "@new"}, good: []string{"@org"}},
	{rule: "roles_pkey", sql: "INSERT INTO roles (org_id, id, name) VALUES (@org, ??, 'x')", bad: []string{"@role"}, good: []string{"@new", "@other_role"}},
	{rule: "roles_id_version_check", sql: "INSERT INTO roles (org_id, id, name) VALUES (@org, ??, 'x')", bad: notUUIDv7, good: uuidv7},
	{rule: "roles_name_key", sql: "INSERT INTO roles (org_id, name) VALUES (@org, ??)", bad: []string{"'builder'"}, good: []string{"'Builder'", "'reviewer'"}},
	{rule: "roles_name_length_check", sql: "INSERT INTO roles (org_id, name) VALUES (@org, ??)", bad: []string{"''", "repeat('ä', 101)"}, good: []string{"'x'", "repeat('ä', 100)"}},
	{rule: "roles_origin_check", sql: "UPDATE roles SET origin = ?? WHERE id = @role", bad: []string{"''", "'database'"}, good: []string{"'api'", "'file', file_set = 'x'", "'import'"}},
	{rule: "roles_file_set_check", sql: "INSERT INTO roles (org_id, name, origin, file_set) VALUES (@org, 'x', ??)", bad: []string{"'api', 'x'", "'import', 'x'", "'file', NULL"}, good: []string{"'file', 'x'", "'api', NULL"}},
	{rule: "roles_file_set_length_check", sql: "INSERT INTO roles (org_id, name, origin, file_set) VALUES (@org, 'x', 'file', ??)", bad: []string{"''", "repeat('ä', 201)"}, good: []string{"'x'", "repeat('ä', 200)"}},
	{rule: "roles_beyond_limits", state: "42501", sql: "SELECT set_config('hub.project_ids', ??, true); UPDATE roles SET prompt = 'x' WHERE id = @role", bad: []string{"'{' || @project || '}'", "'{}'"}, good: []string{"''"}},
	{rule: "roles_beyond_limits", state: "42501", sql: "SELECT set_config('hub.project_ids', ??, true); DELETE FROM roles WHERE id = @role", bad: []string{"'{' || @project || '}'"}, good: []string{"''"}},
	{rule: "roles_data_object_check", sql: "UPDATE roles SET data = ?? WHERE id = @role", bad: notObjects, good: objects},
	{rule: "roles_metadata_check", sql: "UPDATE roles SET metadata = ?? WHERE id = @role", bad: notMetadata, good: metadata},
	{
		rule: "roles_identity_immutable", sql: "UPDATE roles SET ?? WHERE id = @role",
		bad: []string{"id = @new", "org_id = @other_org", "created_at = created_at - interval '1 hour'"}, good: []string{"name = 'x'", "org_id = @org"},
	},
	{rule: "roles_org_id_fkey", hub: true, sql: "INSERT INTO roles (org_id, name) VALUES (??, 'x')", bad: []string{"@new"}, good: []string{"@org"}},
	{rule: "roles_org_id_fkey_in_use", hub: true, before: "DELETE FROM calls; DELETE FROM spokes; DELETE FROM sessions; DELETE FROM clients; DELETE FROM tasks; DELETE FROM projects; DELETE FROM roles WHERE org_id = @other_org", sql: "DELETE FROM organizations WHERE id = ??", bad: []string{"@org"}, good: []string{"@other_org"}},

	{rule: "session_versions_pkey", hub: true, sql: "INSERT INTO session_versions (version, description) VALUES (??, 'x')", bad: []string{"'1'"}, good: []string{"'2'"}},
	{rule: "session_run_states_pkey", hub: true, sql: "INSERT INTO session_run_states (run_state, description) VALUES (??, 'x')", bad: []string{"'idle'"}, good: []string{"'new'"}},
	{rule: "session_run_state_transitions_pkey", hub: true, sql: "INSERT INTO session_run_state_transitions (from_state, to_state) VALUES ('idle', ??)", bad: []string{"'running'"}, good: []string{"'idle'"}},
	{rule: "session_run_state_transitions_from_state_fkey", hub: true, sql: "INSERT INTO session_run_state_transitions (from_state, to_state) VALUES (??, 'idle')", bad: []string{"'new'"}, good: []string{"'ended'"}},
	{rule: "session_run_state_transitions_to_state_fkey", hub: true, sql: "INSERT INTO session_run_state_transitions (from_state, to_state) VALUES ('idle', ??)", bad: []string{"'new'"}, good: []string{"'idle'"}},
	{
		rule: "session_run_state_transitions_from_state_fkey_in_use", hub: true,
		before: "INSERT INTO session_run_states (run_state, description) VALUES ('new', 'x'); DELETE FROM session_run_state_transitions WHERE to_state = 'running'",
		sql:    "DELETE FROM session_run_states WHERE run_state = ??", bad: []string{"'running'"}, good: []string{"'new'"},
	},
	{
		rule: "session_run_state_transitions_to_state_fkey_in_use", hub: true, before: "INSERT INTO session_run_states (run_state, description) VALUES ('new', 'x')",
		sql: "DELETE FROM session_run_states WHERE run_state = ??", bad: []string{"'ended'"}, good: []string{"'new'"},
	},

	{rule: "sessions_tenant", sql: "INSERT INTO sessions (org_id, project_id) VALUES (??, @project)", bad: []string{"@other_org", "@new"}, good: []string{"@org"}},
	{rule: "sessions_limited", before: as("owner", "project_ids", "'{' || @project || '}'"), sql: "INSERT INTO sessions (org_id, project_id) VALUES (@org, ??)", bad: []string{"@empty_project"}, good: []string{"@project"}},
	{rule: "sessions_pkey", sql: fmt.Sprintf(newSession, "id"), bad: []string{"@session"}, good: []string{"@new", "@other_session"}},
	{rule: "sessions_id_version_check", sql: fmt.Sprintf(newSession, "id"), bad: notUUIDv7, good: uuidv7},
	{rule: "sessions_slug_key", sql: fmt.Sprintf(newSession, "slug"), bad: []string{"'parent'"}, good: []string{"'other'"}},
	{rule: "sessions_slug_shape_check", sql: fmt.Sprintf(newSession, "slug"), bad: notSlugs, good: slugs},
	{rule: "sessions_source_source_id_key", sql: fmt.Sprintf(newSession, "source_updated_at, source, source_id"), bad: []string{"now(), 'test', 's1'"}, good: []string{"now(), 'test', 's2'", "now(), 'other', 's1'", "NULL, NULL, NULL"}},
	{rule: "sessions_project_id_fkey", sql: "INSERT INTO sessions (org_id, project_id) VALUES (@org, ??)", bad: []string{"@new", "@other_project"}, good: []string{"@project", "@empty_project"}},
	{rule: "sessions_project_id_fkey_in_use", before: "DELETE FROM tasks", sql: "DELETE FROM projects WHERE id = ??", bad: []string{"@project"}, good: []string{"@empty_project"}},
	{rule: "sessions_parent_id_fkey", sql: fmt.Sprintf(newSession, "parent_id"), bad: []string{"@new", "@other_session"}, good: []string{"@session", "@child", "NULL"}},
	{rule: "sessions_parent_id_fkey", before: limitedToAnotherProject, sql: "INSERT INTO sessions (org_id, project_id, parent_id) VALUES (@org, @empty_project, ??)", bad: []string{"@session", "@high"}, good: []string{"@new", "NULL"}},
	{rule: "sessions_parent_id_fkey", before: deletedSession, hub: true, sql: fmt.Sprintf(newSession, "parent_id"), bad: []string{"@imported"}, good: []string{"@session"}},
	{rule: "sessions_fork_of_id_fkey", sql: fmt.Sprintf(newSession, "fork_of_id"), bad: []string{"@new", "@other_session"}, good: []string{"@session", "NULL"}},
	{rule: "sessions_account_id_fkey", sql: fmt.Sprintf(newSession, "account_id"), bad: []string{"@new", "@nobody", "@other_owner"}, good: []string{"@owner", "@member", "NULL"}},
	{rule: "sessions_role_name_fkey", sql: fmt.Sprintf(newSession, "role_name"), bad: []string{"'nobody'", "'reviewer'", "'Builder'", "''"}, good: []string{"'builder'", "NULL"}},
	{rule: "sessions_role_name_fkey", sql: "UPDATE sessions SET role_name = ?? WHERE id = @session", bad: []string{"'nobody'", "'reviewer'"}, good: []string{"'unused'", "NULL"}},
	{rule: "sessions_version_fkey", sql: fmt.Sprintf(newSession, "version"), bad: []string{"'0'", "'2'", "''", "'1.18'"}, good: []string{"'1'"}},
	{rule: "sessions_version_fkey_in_use", hub: true, before: "INSERT INTO session_versions (version, description) VALUES ('2', 'x')", sql: "DELETE FROM session_versions WHERE version = ??", bad: []string{"'1'"}, good: []string{"'2'"}},
	{rule: "sessions_run_state_fkey", sql: fmt.Sprintf(newSession, "run_state"), bad: []string{"''", "'Idle'", "'archived'"}, good: []string{"'idle'", "'running'", "'waiting'", "'errored'", "'ended'"}},
	{
		rule: "sessions_run_state_fkey_in_use", hub: true,
		before: "DELETE FROM session_run_state_transitions", sql: "DELETE FROM session_run_states WHERE run_state = ??", bad: []string{"'idle'"}, good: []string{"'ended'"},
	},
	{rule: "sessions_run_state_transition", before: "UPDATE sessions SET run_state = 'errored' WHERE id = @session", sql: "UPDATE sessions SET run_state = ?? WHERE id = @session", bad: []string{"'waiting'", "'new'"}, good: []string{"'running'", "'errored'"}},
	{rule: "sessions_title_length_check", sql: "UPDATE sessions SET title = ?? WHERE id = @session", bad: []string{"repeat('ä', 10001)"}, good: []string{"''", "repeat('ä', 10000)"}},
	{rule: "sessions_source_shape_check", sql: fmt.Sprintf(newSession, "source_updated_at, source_id, source"), bad: prefixed("now(), 'x', ", notSources), good: prefixed("now(), 'x', ", sources)},
	{rule: "sessions_source_id_length_check", sql: fmt.Sprintf(newSession, "source_updated_at, source, source_id"), bad: prefixed("now(), 'x', ", notSourceIDs), good: prefixed("now(), 'x', ", sourceIDs)},
	{rule: "sessions_source_parent_id_length_check", sql: "UPDATE sessions SET source_parent_id = ?? WHERE id = @imported", bad: notSourceIDs, good: append(sourceIDs, "NULL")},
	{
		rule: "sessions_source_whole_check", sql: fmt.Sprintf(newSession, "source, source_id, source_updated_at, source_parent_id"),
		bad: []string{
			"'x', NULL, NULL, NULL", "'x', NULL, now(), NULL", "NULL, 'x', NULL, NULL", "NULL, 'x', now(), NULL", "NULL, NULL, NULL, 'x'", "NULL, NULL, now(), NULL", "'x', 'x', NULL, NULL", "'x', 'x', NULL, 'x'",
		},
		good: []string{"NULL, NULL, NULL, NULL", "'x', 'x', now(), NULL", "'x', 'x', now(), 'y'"},
	},
	{rule: "sessions_not_own_parent_check", sql: fmt.Sprintf(newSession, "id, parent_id"), bad: []string{"@new, @new"}, good: []string{"@new, @session"}},
	{rule: "sessions_not_own_parent_check", sql: fmt.Sprintf(newSession, "source, source_updated_at, source_id, source_parent_id"), bad: []string{"'x', now(), 'x', 'x'"}, good: []string{"'x', now(), 'x', 'y'"}},
	{rule: "sessions_data_object_check", sql: "UPDATE sessions SET data = ?? WHERE id = @session", bad: notObjects, good: objects},
	{rule: "sessions_metadata_check", sql: "UPDATE sessions SET metadata = ?? WHERE id = @session", bad: notMetadata, good: metadata},
	{
		rule: "sessions_identity_immutable", hub: true, sql: "UPDATE sessions SET ?? WHERE id = @imported",
		bad:  []string{"id = @new", "org_id = @other_org", "source = 'x'", "source_id = 'x'", "source = NULL, source_id = NULL, source_updated_at = NULL", "created_at = created_at - interval '1 hour'"},
		good: []string{"slug = 'x', title = 'x'", "source_id = 's1'", "source_updated_at = now(), source_parent_id = 'x'"},
	},
	{rule: "sessions_project_immutable", sql: "UPDATE sessions SET project_id = ?? WHERE id = @session", bad: []string{"@empty_project", "@other_project"}, good: []string{"@project"}},
	{rule: "sessions_parent_set_once", sql: "UPDATE sessions SET parent_id = ?? WHERE id = @child", bad: []string{"@imported", "NULL"}, good: []string{"@session"}},
	{rule: "sessions_parent_acyclic", sql: "UPDATE sessions SET parent_id = ?? WHERE id = @session", bad: []string{"@child"}, good: []string{"@imported", "NULL"}},
	{
		// A circle that comes in one statement, and one that the row does not belong to itself.
		rule: "sessions_parent_acyclic", sql: "INSERT INTO sessions (org_id, project_id, id, parent_id) VALUES (@org, @project, @new, @high), (@org, @project, @high, ??)",
		bad: []string{"@new"}, good: []string{"@session", "NULL"},
	},
	{
		rule: "sessions_parent_acyclic", sql: "INSERT INTO sessions (org_id, project_id, id, parent_id) VALUES (@org, @project, hub_uuidv7(), @new), (@org, @project, @new, @high), (@org, @project, @high, ??)",
		bad: []string{"@new"}, good: []string{"@session"},
	},
	{
		// Files that name each other as parent.
		rule: "sessions_parent_acyclic", before: "INSERT INTO sessions (org_id, project_id, source, source_id, source_updated_at, source_parent_id) VALUES (@org, @project, 'x', 'a', now(), 'b')",
		sql: fmt.Sprintf(newSession, "source, source_id, source_updated_at, source_parent_id"), bad: []string{"'x', 'b', now(), 'a'"}, good: []string{"'x', 'b', now(), 'c'", "'x', 'b', now(), NULL", "'y', 'b', now(), 'a'"},
	},

	{rule: "messages_tenant", sql: "INSERT INTO messages (org_id, session_id, role) VALUES (??, @session, 'user')", bad: []string{"@other_org", "@new"}, good: []string{"@org"}},
	{rule: "messages_limited", before: limitedToAnotherProject, sql: "INSERT INTO messages (org_id, session_id, role) VALUES (@org, ??, 'user')", bad: []string{"@session"}, good: []string{"@new"}},
	{rule: "messages_limited", before: limitedToAnotherProject, sql: fmt.Sprintf(importMessage, "@org, DEFAULT, ??"), bad: []string{"@session"}, good: []string{"@new"}},
	{rule: "messages_pkey", sql: fmt.Sprintf(importMessage, "@org, ??, @session"), bad: []string{"@message", "@child_message"}, good: []string{"@new", "@other_message"}},
	{
		// What the primary key refuses already; it is there to be referred to (C04).
		rule: "messages_session_id_id_key", hub: true, before: "ALTER TABLE messages DROP CONSTRAINT messages_pkey",
		sql: fmt.Sprintf(importMessage, "@org, ??, @session"), bad: []string{"@message"}, good: []string{"@child_message", "@new"},
	},
	{rule: "messages_id_version_check", sql: "INSERT INTO messages (org_id, id, session_id, role) VALUES (@org, ??, @session, 'user')", bad: notUUIDv7, good: uuidv7},
	{rule: "messages_id_version_check", sql: fmt.Sprintf(importMessage, "@org, ??, @session"), bad: notUUIDv7, good: uuidv7},
	{
		rule: "messages_source_source_id_key", sql: "INSERT INTO messages (org_id, session_id, role, source, source_id, source_position) VALUES (@org, @imported, 'user', ??, 0)",
		bad: []string{"'test', 'm1'"}, good: []string{"'test', 'm2'", "'other', 'm1'"},
	},
	{rule: "messages_session_id_fkey", sql: "INSERT INTO messages (org_id, session_id, role) VALUES (@org, ??, 'user')", bad: []string{"@new", "@other_session"}, good: []string{"@session", "@child"}},
	{rule: "messages_role_check", sql: "INSERT INTO messages (org_id, session_id, role) VALUES (@org, @session, ??)", bad: []string{"''", "'tool'", "'User'"}, good: []string{"'user'", "'assistant'", "'system'"}},
	{
		rule: "messages_source_shape_check", sql: "INSERT INTO messages (org_id, session_id, role, source_id, source_position, source) VALUES (@org, @imported, 'user', 'x', 0, ??)",
		bad: notSources, good: sources,
	},
	{
		rule: "messages_source_id_length_check", sql: "INSERT INTO messages (org_id, session_id, role, source, source_position, source_id) VALUES (@org, @imported, 'user', 'test', 0, ??)",
		bad: notSourceIDs, good: sourceIDs,
	},
	{
		rule: "messages_source_whole_check", sql: "INSERT INTO messages (org_id, session_id, role, source, source_id, source_position) VALUES (@org, @imported, 'user', ??)",
		bad:  []string{"'x', NULL, NULL", "NULL, 'x', NULL", "NULL, NULL, 0", "'x', 'x', NULL", "'x', NULL, 0", "NULL, 'x', 0"},
		good: []string{"NULL, NULL, NULL", "'x', 'x', 0"},
	},
	{rule: "messages_data_object_check", sql: "UPDATE messages SET data = ?? WHERE id = @message", bad: notObjects, good: objects},
	{rule: "messages_metadata_check", sql: "UPDATE messages SET metadata = ?? WHERE id = @message", bad: notMetadata, good: metadata},
	{
		rule: "messages_identity_immutable", sql: "UPDATE messages SET ?? WHERE id = @message",
		bad:  []string{"id = @new", "org_id = @other_org", "source = 'x', source_id = 'x', source_position = 0", "created_at = created_at - interval '1 hour'"},
		good: []string{"role = 'system', data = '{\"a\": 1}'", "id = @message"},
	},
	{rule: "messages_identity_immutable", sql: "UPDATE messages SET ?? WHERE source_id = 'm1'", bad: []string{"source_id = 'x'", "source = 'x'"}, good: []string{"source_position = 7", "source_id = 'm1'"}},
	{rule: "messages_session_immutable", sql: "UPDATE messages SET session_id = ?? WHERE id = @second_message", bad: []string{"@child", "@other_session", "@new"}, good: []string{"@session"}},
	{
		// A setting that says that nothing was issued yet, while the session's last id is far ahead.
		rule: "messages_in_order", before: "INSERT INTO messages (org_id, id, session_id, role) VALUES (@org, @high, @session, 'user')",
		sql: "SELECT set_config('hub.issued_messages', @session || ' ' || ??, true); INSERT INTO messages (org_id, session_id, role) VALUES (@org, @session, 'user')", bad: []string{"@message", "@zero"}, good: []string{"@high"},
	},
	{
		// There is nothing above the highest possible id: refused, rather than out of order.
		rule: "messages_in_order", before: "INSERT INTO messages (org_id, id, session_id, role) VALUES (@org, 'ffffffff-ffff-7fff-8000-000000000000', @session, 'user')",
		sql: "INSERT INTO messages (org_id, session_id, role) VALUES (@org, ??, 'user')", bad: []string{"@session"}, good: []string{"@imported"},
	},

	{rule: "parts_tenant", sql: "INSERT INTO parts (org_id, session_id, message_id, type) VALUES (??, @session, @message, 'text')", bad: []string{"@other_org", "@new"}, good: []string{"@org"}},
	{rule: "parts_limited", before: limitedToAnotherProject, sql: "INSERT INTO parts (org_id, session_id, message_id, type) VALUES (@org, ??, 'text')", bad: []string{"@session, @message"}, good: []string{"@new, @high"}},
	{rule: "parts_limited", before: limitedToAnotherProject, sql: fmt.Sprintf(importPart, "@org, DEFAULT, ??"), bad: []string{"@session, @message"}, good: []string{"@new, @high"}},
	{rule: "parts_pkey", sql: fmt.Sprintf(importPart, "@org, ??, @session, @message"), bad: []string{"@part"}, good: []string{"@new", "@other_part", "@message"}},
	{rule: "parts_id_version_check", sql: "INSERT INTO parts (org_id, id, session_id, message_id, type) VALUES (@org, ??, @session, @message, 'text')", bad: notUUIDv7, good: uuidv7},
	{rule: "parts_id_version_check", sql: fmt.Sprintf(importPart, "@org, ??, @session, @message"), bad: notUUIDv7, good: uuidv7},
	{
		rule: "parts_source_source_id_key", sql: "INSERT INTO parts (org_id, session_id, message_id, type, source, source_id, source_position) VALUES (@org, @session, @message, 'text', ??, 0)",
		bad: []string{"'test', 'p1'"}, good: []string{"'test', 'p2'", "'other', 'p1'"},
	},
	{
		// C04: the message must be one of the part's own session.
		rule: "parts_message_id_fkey", sql: "INSERT INTO parts (org_id, session_id, message_id, type) VALUES (@org, @session, ??, 'text')",
		bad: []string{"@child_message", "@other_message", "@new"}, good: []string{"@message", "@second_message"},
	},
	{rule: "parts_message_id_fkey", sql: "INSERT INTO parts (org_id, session_id, message_id, type) VALUES (@org, ??, @message, 'text')", bad: []string{"@child", "@other_session", "@new"}, good: []string{"@session"}},
	{rule: "parts_type_length_check", sql: "UPDATE parts SET type = ?? WHERE id = @part", bad: []string{"''", "repeat('ä', 101)"}, good: []string{"'x'", "repeat('ä', 100)"}},
	{
		rule: "parts_source_shape_check", sql: "INSERT INTO parts (org_id, session_id, message_id, type, source_id, source_position, source) VALUES (@org, @session, @message, 'text', 'x', 0, ??)",
		bad: notSources, good: sources,
	},
	{
		rule: "parts_source_id_length_check", sql: "INSERT INTO parts (org_id, session_id, message_id, type, source, source_position, source_id) VALUES (@org, @session, @message, 'text', 'test', 0, ??)",
		bad: notSourceIDs, good: sourceIDs,
	},
	{
		rule: "parts_source_whole_check", sql: "INSERT INTO parts (org_id, session_id, message_id, type, source, source_id, source_position) VALUES (@org, @session, @message, 'text', ??)",
		bad:  []string{"'x', NULL, NULL", "NULL, 'x', NULL", "NULL, NULL, 0", "'x', 'x', NULL", "'x', NULL, 0", "NULL, 'x', 0"},
		good: []string{"NULL, NULL, NULL", "'x', 'x', 0"},
	},
	{rule: "parts_data_object_check", sql: "UPDATE parts SET data = ?? WHERE id = @part", bad: notObjects, good: objects},
	{rule: "parts_metadata_check", sql: "UPDATE parts SET metadata = ?? WHERE id = @part", bad: notMetadata, good: metadata},
	{
		rule: "parts_identity_immutable", sql: "UPDATE parts SET ?? WHERE id = @part",
		bad:  []string{"id = @new", "org_id = @other_org", "source = 'x', source_id = 'x', source_position = 0", "created_at = created_at - interval '1 hour'"},
		good: []string{"type = 'tool', data = '{\"a\": 1}'", "id = @part"},
	},
	{rule: "parts_session_immutable", sql: "UPDATE parts SET ?? WHERE id = @part", bad: []string{"message_id = @second_message", "session_id = @child", "session_id = @child, message_id = @child_message"}, good: []string{"message_id = @message", "session_id = @session"}},
	{
		rule: "parts_in_order", before: "INSERT INTO parts (org_id, id, session_id, message_id, type) VALUES (@org, @high, @session, @message, 'text')",
		sql: "SELECT set_config('hub.issued_parts', @session || ' ' || ??, true); INSERT INTO parts (org_id, session_id, message_id, type) VALUES (@org, @session, @message, 'text')", bad: []string{"@part", "@zero"}, good: []string{"@high"},
	},
	{rule: "tool_states_pkey", hub: true, sql: "INSERT INTO tool_states (tool_state, description) VALUES (??, 'x')", bad: []string{"'running'"}, good: []string{"'new'"}},
	{rule: "tool_state_transitions_pkey", hub: true, sql: "INSERT INTO tool_state_transitions (from_state, to_state) VALUES ('pending', ??)", bad: []string{"'running'"}, good: []string{"'completed'"}},
	{rule: "tool_state_transitions_from_state_fkey", hub: true, sql: "INSERT INTO tool_state_transitions (from_state, to_state) VALUES (??, 'pending')", bad: []string{"'new'"}, good: []string{"'running'"}},
	{rule: "tool_state_transitions_to_state_fkey", hub: true, sql: "INSERT INTO tool_state_transitions (from_state, to_state) VALUES ('pending', ??)", bad: []string{"'new'"}, good: []string{"'completed'"}},
	{
		rule: "tool_state_transitions_from_state_fkey_in_use", hub: true,
		before: "INSERT INTO tool_states (tool_state, description) VALUES ('new', 'x'); DELETE FROM part_deltas; DELETE FROM parts; DELETE FROM tool_state_transitions WHERE to_state = 'running'",
		sql:    "DELETE FROM tool_states WHERE tool_state = ??", bad: []string{"'running'"}, good: []string{"'new'"},
	},
	{
		rule: "tool_state_transitions_to_state_fkey_in_use", hub: true, before: "INSERT INTO tool_states (tool_state, description) VALUES ('new', 'x')",
		sql: "DELETE FROM tool_states WHERE tool_state = ??", bad: []string{"'completed'"}, good: []string{"'new'"},
	},
	{
		rule: "parts_tool_state_fkey", sql: "INSERT INTO parts (org_id, session_id, message_id, type, data) VALUES (@org, @session, @message, 'tool', ??)",
		bad:  []string{`'{"state": {"status": "cancelled"}}'`, `'{"state": {"status": ""}}'`, `'{"state": {"status": 5}}'`, `'{"state": {"status": "Running"}}'`},
		good: []string{`'{"state": {"status": "pending"}}'`, `'{"state": {"status": "completed"}}'`, `'{"state": {"status": "error"}}'`, `'{}'`},
	},
	{
		rule: "parts_tool_state_fkey", // imports may insert any state, and so may parts of other types
		sql:  "INSERT INTO parts (org_id, session_id, message_id, source_position, type, data, source, source_id) VALUES (@org, @session, @message, ??)",
		bad:  []string{`NULL, 'tool', '{"state": {"status": "cancelled"}}', NULL, NULL`},
		good: []string{`0, 'tool', '{"state": {"status": "cancelled"}}', 'test', 'x'`, `NULL, 'subtask', '{"state": {"status": "cancelled"}}', NULL, NULL`},
	},
	{rule: "parts_tool_state_fkey_in_use", hub: true, before: "DELETE FROM tool_state_transitions", sql: "DELETE FROM tool_states WHERE tool_state = ??", bad: []string{"'running'"}, good: []string{"'pending'"}},
	{
		rule: "parts_tool_state_transition", sql: `UPDATE parts SET data = jsonb_set(data, '{state,status}', ??) WHERE id = @tool`,
		bad: []string{`'"pending"'`}, good: []string{`'"running"'`, `'"completed"'`, `'"error"'`},
	},
	{
		rule: "parts_tool_state_transition", before: `UPDATE parts SET data = '{"state": {"status": "completed"}}' WHERE id = @tool`, sql: "UPDATE parts SET data = ?? WHERE id = @tool",
		bad:  []string{`'{"state": {"status": "running"}}'`, `'{"state": {"status": "error"}}'`, `'{"state": {"status": "pending"}}'`, `'{}'`},
		good: []string{`'{"state": {"status": "completed", "output": "more"}}'`},
	},
	{
		rule: "parts_tool_state_transition", before: `INSERT INTO parts (org_id, session_id, message_id, type, data) VALUES (@org, @child, @child_message, 'tool', '{"state": {"status": "pending"}}')`,
		sql: `UPDATE parts SET data = ?? WHERE session_id = @child AND data #>> '{state,status}' = 'pending'`,
		bad: []string{`'{"state": {"status": "completed"}}'`}, good: []string{`'{"state": {"status": "running"}}'`, `'{"state": {"status": "error"}}'`, `'{"state": {"status": "pending", "raw": "x"}}'`},
	},

	{rule: "part_deltas_limited", before: limitedToAnotherProject + "; INSERT INTO parts (org_id, id, session_id, message_id, type) VALUES (@org, @high, @new, @high, 'text')", sql: "INSERT INTO part_deltas (org_id, part_id, start_offset, text) VALUES (@org, ??, 'x')", bad: []string{"@part, 5"}, good: []string{"@high, 0"}},
	{rule: "part_deltas_tenant", sql: "INSERT INTO part_deltas (org_id, part_id, start_offset, text) VALUES (??, 5, 'x')", bad: []string{"@other_org, @other_part"}, good: []string{"@org, @part"}},
	{
		rule: "part_deltas_pkey", hub: true, before: "ALTER TABLE part_deltas DISABLE TRIGGER USER", sql: "INSERT INTO part_deltas (org_id, part_id, start_offset, text) VALUES (@org, ??, 'x')",
		bad: []string{"@part, 0"}, good: []string{"@part, 5", "@tool, 0"},
	},
	{rule: "part_deltas_part_id_fkey", sql: "INSERT INTO part_deltas (org_id, part_id, start_offset, text) VALUES (@org, ??, 'x')", bad: []string{"@new, 0", "@other_part, 5"}, good: []string{"@part, 5", "@tool, 0"}},
	{rule: "part_deltas_text_length_check", sql: "INSERT INTO part_deltas (org_id, part_id, start_offset, text) VALUES (@org, @part, 5, ??)", bad: []string{"''", "repeat('x', 8388609)"}, good: []string{"'x'", "repeat('x', 8388608)"}},
	{
		rule: "part_deltas_whole_length_check", before: "UPDATE parts SET data = jsonb_build_object('text', repeat('x', 16777215)) WHERE id = @part",
		sql: "INSERT INTO part_deltas (org_id, part_id, start_offset, text) VALUES (@org, @part, 16777215, ??)", bad: []string{"'xy'", "'😀'"}, good: []string{"'x'", "'ä'"},
	},
	{rule: "part_deltas_append_only", hub: true, sql: "UPDATE ?? SET org_id = org_id", bad: []string{"part_deltas"}, good: []string{"parts"}},
	{rule: "part_deltas_contiguous", sql: "INSERT INTO part_deltas (org_id, part_id, start_offset, text) VALUES (@org, @part, ??, 'x')", bad: []string{"0", "4", "6", "-1", "5000000000"}, good: []string{"5"}},
	{
		rule: "part_takes_no_deltas",
		sql:  "UPDATE parts SET (type, data) = (??) WHERE id = @part; INSERT INTO part_deltas (org_id, part_id, start_offset, text) VALUES (@org, @part, 0, 'x')",
		bad: []string{
			`'file', '{"text": ""}'`, `'step-start', '{"x": 1}'`, `'text', '{"text": 5}'`, `'text', '{"text": null}'`, `'mystery', '{"text": {}}'`, `'tool', '{"x": 1}'`,
			`'tool', '{"state": {"status": "completed"}}'`, `'tool', '{"state": {"status": "error"}}'`,
		},
		good: []string{
			`'text', '{"text": ""}'`, `'reasoning', '{"x": 1}'`, `'mystery', '{"x": 1}'`, `'tool', '{"state": {"status": "pending"}}'`, `'tool', '{"state": {"status": "running", "output": ""}}'`,
		},
	},
}

func prefixed(prefix string, values []string) []string {
	result := make([]string, len(values))
	for i, value := range values {
		result[i] = prefix + value
	}
	return result
}

var sessionsDeletes = []deleteCase{
	// C01
	{fk: "sessions_account_id_fkey", delete: "DELETE FROM accounts WHERE id = @member", gone: "SELECT account_id IS NULL FROM sessions WHERE id = @session"},
	{fk: "sessions_account_id_fkey", delete: "DELETE FROM organization_members WHERE account_id = @member", gone: "SELECT account_id IS NULL AND role_name = 'builder' FROM sessions WHERE id = @session"},
	// C05
	{fk: "sessions_role_name_fkey", delete: "DELETE FROM roles WHERE name = 'builder'", gone: "SELECT role_name IS NULL AND account_id = @member FROM sessions WHERE id = @session"},
	{fk: "sessions_role_name_fkey", delete: "UPDATE roles SET name = 'maker' WHERE name = 'builder'", gone: "SELECT role_name = 'maker' FROM sessions WHERE id = @session"},
	// C14
	{fk: "sessions_parent_id_fkey", delete: "DELETE FROM sessions WHERE id = @session", gone: "SELECT parent_id IS NULL FROM sessions WHERE id = @child"},
	{fk: "sessions_fork_of_id_fkey", before: "UPDATE sessions SET fork_of_id = @session WHERE id = @imported", delete: "DELETE FROM sessions WHERE id = @session", gone: "SELECT fork_of_id IS NULL FROM sessions WHERE id = @imported"},
	{fk: "messages_session_id_fkey", delete: "DELETE FROM sessions WHERE id = @session", gone: "SELECT NOT EXISTS (SELECT FROM messages WHERE session_id = @session)"},
	{fk: "parts_message_id_fkey", delete: "DELETE FROM sessions WHERE id = @session", gone: "SELECT NOT EXISTS (SELECT FROM parts WHERE session_id = @session)"},
	{fk: "parts_message_id_fkey", delete: "DELETE FROM messages WHERE id = @message", gone: "SELECT NOT EXISTS (SELECT FROM parts WHERE message_id = @message)"},
	{fk: "part_deltas_part_id_fkey", delete: "DELETE FROM parts WHERE id = @part", gone: "SELECT NOT EXISTS (SELECT FROM part_deltas WHERE part_id = @part)"},
}

func TestX02_SessionsRules(t *testing.T) {
	t.Parallel()
	checkRules(t, sessionsRules)
}

func TestC14_SessionsDeletes(t *testing.T) {
	t.Parallel()
	checkDeletes(t, sessionsDeletes)
}

// The same as hub_app, which row level security binds: what a deletion does to other rows is not left to it.
func TestC14_RequestsDeleteTheSame(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const session = "SELECT concat_ws(' ', coalesce(parent_id::text, '-'), coalesce(role_name, '-')) FROM sessions WHERE id = "
	exec(t, w.app, "UPDATE roles SET name = 'maker' WHERE id = @role")
	if got := get[string](t, w.app, session+"@session"); got != "- maker" {
		t.Error(got)
	}
	exec(t, w.app, "DELETE FROM roles WHERE id = @role")
	if got := get[string](t, w.app, session+"@session"); got != "- -" {
		t.Error(got)
	}
	exec(t, w.app, "DELETE FROM sessions WHERE id = @session")
	if got := get[string](t, w.app, session+"@child"); got != "- -" {
		t.Error(got)
	}
	if got := get[int](t, w.hub, "SELECT (SELECT count(*) FROM messages WHERE session_id = @session) + (SELECT count(*) FROM parts WHERE session_id = @session)"); got != 0 {
		t.Errorf("%d messages and parts are left", got)
	}
	// An orphan may be adopted again.
	exec(t, w.app, "UPDATE sessions SET parent_id = @imported WHERE id = @child")
}

// A session that is marked as deleted is nobody's any more, with all that hangs below it, though its rows are still there.
func TestDeletedSessionsAreInvisible(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const rows = "SELECT (SELECT count(*) FROM sessions WHERE id = @session) || ' ' || (SELECT count(*) FROM messages WHERE session_id = @session) || ' ' || (SELECT count(*) FROM parts WHERE session_id = @session)"
	exec(t, w.app, "INSERT INTO parts (org_id, session_id, message_id, type) SELECT @org, @session, @message, 'text' FROM generate_series(1, 1001)")
	other := w.connect(t, "other_org", "other_owner")
	if got := get[int](t, other, "SELECT delete_session(@session, true)"); got != 0 {
		t.Errorf("another organisation deleted %d sessions", got)
	}
	if got := get[string](t, w.app, rows); got != "1 2 1002" {
		t.Error(got)
	}
	if got := get[int](t, w.app, "SELECT delete_session(@session, false)"); got != 1 {
		t.Errorf("%d sessions were deleted", got)
	}
	if got := get[string](t, w.app, rows); got != "0 0 0" {
		t.Errorf("hub_app sees %s", got)
	}
	if got := get[string](t, w.hub, rows); got != "1 2 1002" {
		t.Errorf("there are %s", got)
	}
	for _, sql := range []string{
		"INSERT INTO messages (org_id, session_id, role) VALUES (@org, @session, 'user')",
		"INSERT INTO parts (org_id, session_id, message_id, type) VALUES (@org, @session, @message, 'text')",
		"UPDATE sessions SET deleted_at = now() WHERE id = @child", "UPDATE sessions SET last_message_id = last_message_id WHERE id = @child",
	} {
		_, err := attempt(t, w.app, "", sql)
		refuses(t, err, "42501", "")
		if _, err := attempt(t, w.app, "", strings.NewReplacer("@session", "@child", "@message", "@child_message", "deleted_at = now()", "title = 'x'", "last_message_id = last_message_id", "title = 'x'").Replace(sql)); err != nil {
			t.Error(err)
		}
	}
	if got := get[int](t, w.app, "WITH u AS (UPDATE parts SET type = 'x' WHERE session_id = @session RETURNING 1) SELECT count(*)::int FROM u"); got != 0 {
		t.Errorf("%d parts were changed", got)
	}
	for _, want := range []int{1000, 4 + 1, 0} { // the rest of the parts, the messages and the session
		if got := get[int](t, w.app, "SELECT purge_deleted_sessions(1000)"); got != want {
			t.Errorf("%d rows were purged, want %d", got, want)
		}
	}
	if got := get[string](t, w.hub, rows); got != "0 0 0" {
		t.Errorf("there are %s", got)
	}
}

// Ids follow the order of writing (C02) -------------------------------------------------------------------------------

// outOfOrder counts the rows of a table whose id is not above that of the row written before, where data.n is the order.
func outOfOrder(table string) string {
	return `SELECT count(*) FROM (
		SELECT id <= lag(id) OVER (PARTITION BY org_id, session_id ORDER BY (data ->> 'n')::bigint) AS wrong FROM ` + table + ` WHERE data ? 'n') r WHERE wrong`
}

func TestC02_IdsFollowTheOrderOfWriting(t *testing.T) {
	t.Parallel()
	const writers, turns = 8, 15
	for _, ahead := range []bool{false, true} {
		t.Run(fmt.Sprintf("ahead=%v", ahead), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if ahead { // of all clocks: another replica's clock is fast
				exec(t, w.app, "INSERT INTO messages (org_id, id, session_id, role) VALUES (@org, @high, @session, 'user')")
			}
			start := get[string](t, w.app, "SELECT last_message_id::text FROM sessions WHERE id = @session")

			// Who follows the session reads what is above the last id that it has seen. If ids and commits came in different
			// orders, it would miss some.
			var followed []string
			following, stop := context.WithCancel(t.Context())
			follower := w.connect(t, "org", "owner")
			followed = append(followed, start)
			read := func() {
				rows, err := follower.Query(t.Context(), "SELECT id::text FROM messages WHERE session_id = $1 AND id > $2 ORDER BY id", ids["session"], followed[len(followed)-1])
				if err != nil {
					t.Error(err)
					return
				}
				more, err := pgx.CollectRows(rows, pgx.RowTo[string])
				if err != nil {
					t.Error(err)
				}
				followed = append(followed, more...)
			}
			var reading, writing sync.WaitGroup
			reading.Go(func() {
				for following.Err() == nil {
					read()
				}
				read()
			})

			for range writers {
				conn := w.connect(t, "org", "owner")
				writing.Go(func() {
					const insert = "INSERT INTO messages (org_id, session_id, role) VALUES (@org, @session, 'user')"
					for turn := range turns {
						var err error
						switch turn % 3 {
						case 0:
							_, err = run(t.Context(), conn, insert)
						case 1:
							_, err = run(t.Context(), conn, insert+", (@org, @session, 'assistant'), (@org, @session, 'user')")
						case 2: // a slow one: its first id is long issued when it commits
							_, err = run(t.Context(), conn, "BEGIN; "+insert+"; SELECT pg_sleep(0.002); "+insert+"; COMMIT")
						}
						if err != nil {
							t.Error(err)
						}
					}
				})
			}
			writing.Wait()
			stop()
			reading.Wait()

			want := list[string](t, w.app, "SELECT id::text FROM messages WHERE session_id = @session AND id >= '"+start+"' ORDER BY id")
			if len(want) != 1+writers*turns*2 {
				t.Fatalf("%d messages", len(want))
			}
			if !slices.Equal(followed, want) {
				t.Errorf("the follower saw %d of %d messages", len(followed), len(want))
			}
			if got := get[string](t, w.app, "SELECT last_message_id::text FROM sessions WHERE id = @session"); got != want[len(want)-1] {
				t.Errorf("last_message_id is %s, want %s", got, want[len(want)-1])
			}
		})
	}
}

// The candidate id of a writer that had to wait is older than what the other one has written meanwhile.
func TestC02_TheSecondWriterWaitsAndComesAfter(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct{ table, insert string }{
		{"messages", "INSERT INTO messages (org_id, session_id, role) VALUES (@org, @session, 'user') RETURNING id::text"},
		{"parts", "INSERT INTO parts (org_id, session_id, message_id, type) VALUES (@org, @session, @message, 'text') RETURNING id::text"},
	} {
		first, second := w.connect(t, "org", "owner"), w.connect(t, "org", "member")
		pid := get[int](t, second, "SELECT pg_backend_pid()")
		exec(t, first, "BEGIN")
		one := get[string](t, first, c.insert)
		var two string
		done := make(chan error, 1)
		go func() {
			done <- second.QueryRow(t.Context(), named(c.insert), pgx.QueryExecModeSimpleProtocol).Scan(&two)
		}()
		waitFor(t, w.hub, fmt.Sprintf("SELECT cardinality(pg_blocking_pids(%d)) > 0", pid))
		three := get[string](t, first, c.insert)
		exec(t, first, "COMMIT")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if one >= three || three >= two {
			t.Errorf("%s: %s, %s, and then %s", c.table, one, three, two)
		}
	}
}

// waitFor returns once a query says true.
func waitFor(t testing.TB, conn *pgx.Conn, query string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !get[bool](t, conn, query); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never true: %s", query)
		}
	}
}

func TestC02_ClocksThatDiffer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const clock = "(extract(epoch FROM clock_timestamp()) * 4096000)::bigint"
	const hour = "3600 * 4096000::bigint"
	for _, c := range []struct{ table, columns, values string }{
		{"messages", "org_id, session_id, role", "@org, @session, 'user'"},
		{"parts", "org_id, session_id, message_id, type", "@org, @session, @message, 'text'"},
	} {
		insert := func(id string) string {
			return get[string](t, w.app, fmt.Sprintf("INSERT INTO %s (id, %s) VALUES (%s, %s) RETURNING id::text", c.table, c.columns, id, c.values))
		}
		now := insert("DEFAULT")
		fast := get[string](t, w.app, "SELECT hub_uuidv7_at("+clock+" + "+hour+")::text")
		if got := insert("'" + fast + "'"); got != fast {
			t.Errorf("%s: %s, which is above %s, became %s", c.table, fast, now, got)
		}
		last := fast
		for range 3 {
			next := insert("DEFAULT")
			if next <= last {
				t.Errorf("%s: %s after %s", c.table, next, last)
			}
			if get[int64](t, w.app, "SELECT hub_uuidv7_clock('"+next+"') - hub_uuidv7_clock('"+last+"')") != 1 {
				t.Errorf("%s: %s is not the next one after %s", c.table, next, last)
			}
			last = next
		}
		slow := get[string](t, w.app, "SELECT hub_uuidv7_at("+clock+" - "+hour+")::text")
		if got := insert("'" + slow + "'"); got <= last {
			t.Errorf("%s: %s after %s", c.table, got, last)
		}

		// The clock of another session is not concerned.
		if c.table == "messages" {
			if got := get[string](t, w.app, "INSERT INTO messages (org_id, session_id, role) VALUES (@org, @child, 'user') RETURNING id::text"); got >= fast {
				t.Errorf("%s in a session of its own", got)
			}
		}
		// Deleting the last does not make its id free again.
		exec(t, w.app, "DELETE FROM "+c.table+" WHERE id > '"+fast+"'")
		if got := insert("DEFAULT"); got <= last {
			t.Errorf("%s: %s after %s was deleted", c.table, got, last)
		}
	}
}

func TestC02_OneInsertOf100000Messages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.app, `INSERT INTO messages (org_id, session_id, role, data)
		SELECT @org, @session, 'user', jsonb_build_object('n', n) FROM generate_series(1, 100000) n ORDER BY n`)
	if got := get[int](t, w.app, "SELECT count(*) FROM messages WHERE data ? 'n'"); got != 100000 {
		t.Errorf("%d messages", got)
	}
	if got := get[int](t, w.app, outOfOrder("messages")); got != 0 {
		t.Errorf("%d messages are out of order", got)
	}
	if got := get[bool](t, w.app, "SELECT last_message_id = (SELECT id FROM messages WHERE session_id = @session ORDER BY id DESC LIMIT 1) FROM sessions WHERE id = @session"); !got {
		t.Error("last_message_id is not the last message's")
	}
}

// In the worst case every id is a moved one: the session's last is ahead of the clock.
func TestC02_OneInsertOf20000PartsAheadOfTheClock(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.app, "INSERT INTO parts (org_id, id, session_id, message_id, type) VALUES (@org, @high, @session, @message, 'text')")
	exec(t, w.app, `INSERT INTO parts (org_id, session_id, message_id, type, data)
		SELECT @org, @session, @message, 'text', jsonb_build_object('n', n) FROM generate_series(1, 20000) n ORDER BY n`)
	if got := get[int](t, w.app, "SELECT count(*) FROM parts WHERE data ? 'n' AND id > @high"); got != 20000 {
		t.Errorf("%d parts", got)
	}
	if got := get[int](t, w.app, outOfOrder("parts")); got != 0 {
		t.Errorf("%d parts are out of order", got)
	}
}

func TestC02_ManySessionsInOneInsert(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.app, "INSERT INTO sessions (org_id, project_id, slug) SELECT @org, @empty_project, 's-' || n FROM generate_series(0, 9) n")
	exec(t, w.app, "INSERT INTO messages (org_id, id, session_id, role) SELECT org_id, @high, id, 'user' FROM sessions WHERE slug = 's-3'")
	for range 2 { // the second time, each session has rows
		exec(t, w.app, `INSERT INTO messages (org_id, session_id, role, data)
			SELECT @org, s.id, 'user', jsonb_build_object('n', n + (SELECT count(*) FROM messages))
			FROM generate_series(1, 5000) n JOIN sessions s ON s.slug = 's-' || n % 10 ORDER BY n`)
	}
	if got := get[string](t, w.app, "SELECT count(*) || ' ' || count(DISTINCT session_id) FROM messages WHERE data ? 'n'"); got != "10000 10" {
		t.Error(got)
	}
	if got := get[int](t, w.app, outOfOrder("messages")); got != 0 {
		t.Errorf("%d messages are out of order", got)
	}
}

func TestC02_ATransactionOfManyStatements(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, level := range []string{"READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"} {
		exec(t, w.app, "BEGIN ISOLATION LEVEL "+level)
		for n := range 40 {
			session := [...]string{"@session", "@child", "@imported"}[n/4%3]
			exec(t, w.app, fmt.Sprintf(`INSERT INTO messages (org_id, session_id, role, data) VALUES (@org, %s, 'user', '{"n": %d}'), (@org, %[1]s, 'user', '{"n": %[3]d}')`, session, 2*n, 2*n+1))
			if n%5 == 0 {
				exec(t, w.app, "SAVEPOINT s; INSERT INTO messages (org_id, id, session_id, role) VALUES (@org, @high, "+session+", 'user'); ROLLBACK TO s")
			}
		}
		exec(t, w.app, "COMMIT")
		if got := get[int](t, w.app, outOfOrder("messages")); got != 0 {
			t.Errorf("%s: %d messages are out of order", level, got)
		}
		if got := get[int](t, w.app, "SELECT count(*) FROM messages WHERE id >= @high"); got != 0 {
			t.Errorf("%s: what was rolled back has left its mark", level)
		}
		exec(t, w.app, "DELETE FROM messages WHERE data ? 'n'")
	}
}

// Under REPEATABLE READ a writer cannot see what was committed since it began: it is told to start again.
func TestC02_RepeatableRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const insert = "INSERT INTO messages (org_id, session_id, role) VALUES (@org, @session, 'user')"
	other := w.connect(t, "org", "member")
	for _, forged := range []string{"", "SELECT set_config('hub.issued_messages', @session || ' ' || @zero, true);"} {
		for _, session := range []string{"@session", "@child"} {
			exec(t, w.app, "BEGIN ISOLATION LEVEL REPEATABLE READ")
			exec(t, w.app, "SELECT FROM sessions;"+forged)
			exec(t, other, strings.Replace(insert, "@session", session, 1))
			_, err := run(t.Context(), w.app, insert)
			exec(t, w.app, "ROLLBACK")
			if session == "@session" {
				refuses(t, err, "40001", "")
			} else if err != nil {
				t.Errorf("another session's message is in the way: %v", err)
			}
		}
	}
}

func TestC02_ImportsKeepTheirIds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const messages = "INSERT INTO messages (org_id, id, session_id, role, source, source_id, source_position) VALUES (@org, '%s', @imported, 'user', 'test', '%s', 0)"
	old := "00000000-0001-7000-8000-000000000001"
	exec(t, w.app, fmt.Sprintf(messages, ids["high"], "future"))
	exec(t, w.app, fmt.Sprintf(messages, old, "past"))
	if got := list[string](t, w.app, "SELECT id::text FROM messages WHERE source_id IN ('past', 'future') ORDER BY id"); !slices.Equal(got, []string{old, ids["high"]}) {
		t.Error(got)
	}
	// What follows is above them all, also when its id was chosen by hand.
	for _, id := range []string{"DEFAULT", "'" + old[:35] + "2'"} {
		got := get[string](t, w.app, "INSERT INTO messages (org_id, id, session_id, role) VALUES (@org, "+id+", @imported, 'user') RETURNING id::text")
		if got <= ids["high"] {
			t.Errorf("%s became %s", id, got)
		}
	}
}

// What one statement has issued is no floor for the next one's, of another session or after an import.
func TestC02_StatementsOfOneTransactionDoNotDisturbEachOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.app, "BEGIN")
	exec(t, w.app, "INSERT INTO messages (org_id, id, session_id, role) VALUES (@org, @high, @session, 'user')")
	if got := get[string](t, w.app, "INSERT INTO messages (org_id, session_id, role) VALUES (@org, @child, 'user') RETURNING id::text"); got >= ids["high"] {
		t.Errorf("%s, because of another session's message", got)
	}
	exec(t, w.app, fmt.Sprintf(importMessage, "@org, 'ffffffff-1000-7000-8000-000000000000', @child"))
	if got := get[string](t, w.app, "INSERT INTO messages (org_id, session_id, role) VALUES (@org, @child, 'user') RETURNING id::text"); got <= "ffffffff-1" {
		t.Errorf("%s after an import", got)
	}
	exec(t, w.app, "COMMIT")
}

func TestC02_TheLastIdsAreTheDatabasesOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, column := range []string{"last_message_id", "last_part_id"} {
		_, err := attempt(t, w.app, "", "UPDATE sessions SET "+column+" = @zero")
		refuses(t, err, "42501", "")
		_, err = attempt(t, w.app, "", "INSERT INTO sessions (org_id, project_id, "+column+") VALUES (@org, @project, @zero)")
		refuses(t, err, "42501", "")
	}
	if tag, err := attempt(t, w.app, "", "UPDATE sessions SET title = 'x'"); err != nil || tag.RowsAffected() == 0 {
		t.Error(tag, err)
	}
	if _, err := attempt(t, w.app, "", "INSERT INTO sessions (org_id, project_id, title) VALUES (@org, @project, 'x')"); err != nil {
		t.Error(err)
	}
}

// A trigger function that runs with more rights than its caller must not be had for a table of the caller's own.
func TestX01_BookkeepingCannotBeBorrowed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const table = "CREATE TEMPORARY TABLE messages (org_id uuid, session_id uuid, id uuid, source_id text)"
	const trigger = "CREATE TRIGGER x AFTER INSERT ON pg_temp.messages REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION "
	_, err := attempt(t, w.app, table, trigger+"record_session_rows()")
	refuses(t, err, "42501", "")
	// The superuser may, and that is what would come of it.
	if _, err := attempt(t, w.hub, table+";"+trigger+"record_session_rows()", "INSERT INTO pg_temp.messages VALUES (@other_org, @other_session, @high)"); err != nil {
		t.Error(err)
	}
}

// Tables of the caller's own stand in front of the real ones unless a function says where it looks.
func TestX01_TemporaryTablesShadowNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	conn := w.connect(t, "org", "owner")
	exec(t, conn, `
		CREATE TEMPORARY TABLE session_run_state_transitions AS SELECT 'ended' AS from_state, 'idle' AS to_state;
		CREATE TEMPORARY TABLE sessions (LIKE public.sessions);
		UPDATE public.sessions SET run_state = 'ended' WHERE id = @imported`)
	for _, c := range []struct{ rule, sql string }{
		{"sessions_run_state_transition", "UPDATE public.sessions SET run_state = 'idle' WHERE id = @imported"},
		{"sessions_parent_acyclic", "UPDATE public.sessions SET parent_id = @child WHERE id = @session"},
		{"sessions_parent_set_once", "UPDATE public.sessions SET parent_id = NULL WHERE id = @child"},
	} {
		_, err := attempt(t, conn, "", c.sql)
		refuses(t, err, "23514", c.rule)
	}
	exec(t, conn, "INSERT INTO messages (org_id, id, session_id, role) VALUES (@org, @high, @session, 'user')")
	if got := get[string](t, conn, "INSERT INTO messages (org_id, session_id, role) VALUES (@org, @session, 'user') RETURNING id::text"); got <= ids["high"] {
		t.Error(got)
	}
}

// Runs, activity, versions ---------------------------------------------------------------------------------------------

func TestX06_RunStatesFollowTheTransitions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	legal := map[string]string{
		"idle":    "running waiting errored ended",
		"running": "idle waiting errored ended",
		"waiting": "idle running errored ended",
		"errored": "idle running ended",
		"ended":   "",
	}
	states := list[string](t, w.app, "SELECT run_state FROM session_run_states")
	if len(states) != len(legal) {
		t.Errorf("the states are %v", states)
	}
	for _, from := range states {
		for _, to := range states {
			want := slices.Contains(strings.Fields(legal[from]), to)
			if listed := get[bool](t, w.app, fmt.Sprintf("SELECT EXISTS (SELECT FROM session_run_state_transitions WHERE from_state = '%s' AND to_state = '%s')", from, to)); listed != want {
				t.Errorf("%s to %s: %v in the table", from, to, listed)
			}
			_, err := attempt(t, w.app, "INSERT INTO sessions (org_id, project_id, id, run_state) VALUES (@org, @project, @new, '"+from+"')", "UPDATE sessions SET run_state = '"+to+"' WHERE id = @new")
			if want || from == to { // to stay is no transition
				if err != nil {
					t.Errorf("%s to %s: %v", from, to, err)
				}
			} else {
				refuses(t, err, "23514", "sessions_run_state_transition")
			}
		}
	}
	for _, table := range []string{"session_run_states", "session_run_state_transitions", "session_versions"} {
		for _, sql := range []string{"INSERT INTO %s DEFAULT VALUES", "UPDATE %s SET created_at = now()", "DELETE FROM %s"} {
			_, err := attempt(t, w.app, "", fmt.Sprintf(sql, table))
			refuses(t, err, "42501", "")
		}
	}
}

func TestX10_ActivityIsNoRevision(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const state = "SELECT revision || ' ' || (last_activity_at > '%s')::text || ' ' || (updated_at > '%s')::text FROM sessions WHERE id = @session"
	for _, c := range []struct{ sql, want string }{
		{"INSERT INTO messages (org_id, session_id, role) VALUES (@org, @session, 'user')", "1 true true"},
		{"INSERT INTO parts (org_id, session_id, message_id, type) VALUES (@org, @session, @message, 'text')", "1 true true"},
		{fmt.Sprintf(importMessage, "@org, @new, @session"), "1 false true"},
		{fmt.Sprintf(importMessage, "@org, @zero, @session"), "1 false false"}, // neither is there anything to note
		{"INSERT INTO messages (org_id, session_id, role) VALUES (@org, @child, 'user')", "1 false false"},
		{"UPDATE sessions SET title = 'x' WHERE id = @session", "2 false true"},
	} {
		exec(t, w.app, "BEGIN")
		before := get[string](t, w.app, "SELECT last_activity_at::text || '/' || updated_at::text FROM sessions WHERE id = @session")
		activity, updated, _ := strings.Cut(before, "/")
		if tag := exec(t, w.app, c.sql); tag.RowsAffected() != 1 {
			t.Errorf("%s: %s", c.sql, tag)
		}
		if got := get[string](t, w.app, fmt.Sprintf(state, activity, updated)); got != c.want {
			t.Errorf("%s: revision, activity, update: %s, want %s", c.sql, got, c.want)
		}
		exec(t, w.app, "ROLLBACK")
	}
}

func TestW10_TheVersionIsTheShapes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if got := list[string](t, w.app, "SELECT DISTINCT version FROM sessions"); !slices.Equal(got, []string{"1"}) {
		t.Errorf("the default is %v", got)
	}
	if got := list[string](t, w.app, "SELECT version FROM session_versions"); !slices.Equal(got, []string{"1"}) {
		t.Errorf("the versions are %v", got)
	}
}

// Slugs (S09) ----------------------------------------------------------------------------------------------------------

func TestS09_SlugsAreMade(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, `INSERT INTO sessions (org_id, project_id)
		SELECT o.org_id, o.id FROM projects o, generate_series(1, 1000) WHERE o.id IN (@project, @other_project)`)
	if got := get[string](t, w.hub, `
		SELECT count(*) || ' ' || count(DISTINCT (org_id, slug)) || ' ' || (count(DISTINCT split_part(slug, '-', 1)) > 50)::text
		FROM sessions WHERE slug ~ '^[a-z]+-[a-z]+-[0-9a-f]{6}$'`); got != "2000 2000 true" {
		t.Errorf("slugs, distinct ones, many words: %s", got)
	}
	if got := get[string](t, w.app, "INSERT INTO sessions (org_id, project_id, slug) VALUES (@org, @project, 'my-own') RETURNING slug"); got != "my-own" {
		t.Error(got)
	}
	// In another organisation the same slug may be had.
	other := w.connect(t, "other_org", "other_owner")
	if got := get[string](t, other, "INSERT INTO sessions (org_id, project_id, slug) VALUES (@other_org, @other_project, 'my-own') RETURNING slug"); got != "my-own" {
		t.Error(got)
	}
	_, err := attempt(t, w.app, "", "UPDATE sessions SET slug = NULL WHERE id = @session")
	refuses(t, err, "23502", "")
}

// Families of imported sessions ----------------------------------------------------------------------------------------

const importSession = "INSERT INTO sessions (org_id, project_id, source, source_updated_at, source_id, source_parent_id) VALUES (@org, @project, 'test', now(), '%s', %s)"

func importing(id, parent string) string {
	if parent == "" {
		return fmt.Sprintf(importSession, id, "NULL")
	}
	return fmt.Sprintf(importSession, id, "'"+parent+"'")
}

// family is "child>parent child>parent ...", as the parent_ids say.
const family = `
	SELECT coalesce(string_agg(c.source_id || '>' || p.source_id, ' ' ORDER BY c.source_id), '')
	FROM sessions c JOIN sessions p ON p.id = c.parent_id WHERE c.source = 'test'`

func TestC02_ImportedFamiliesFindEachOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sessions := []string{importing("root", "absent"), importing("child", "root"), importing("grandchild", "child"), importing("sibling", "root")}
	for _, order := range permutations(len(sessions)) {
		exec(t, w.app, "BEGIN")
		for _, i := range order {
			exec(t, w.app, sessions[i])
		}
		if got := get[string](t, w.app, family); got != "child>root grandchild>child sibling>root" {
			t.Errorf("%v: %s", order, got)
		}
		exec(t, w.app, "ROLLBACK")
	}

	// Neither another source's session is a parent, nor another organisation's.
	exec(t, w.hub, strings.NewReplacer("@org", "@other_org", "@project", "@other_project").Replace(importing("root", "")))
	exec(t, w.app, strings.Replace(importing("root", ""), "'test'", "'other'", 1))
	exec(t, w.app, importing("child", "root"))
	if got := get[string](t, w.app, family); got != "" {
		t.Error(got)
	}
}

func permutations(n int) [][]int {
	if n == 0 {
		return [][]int{{}}
	}
	var all [][]int
	for _, shorter := range permutations(n - 1) {
		for i := range n {
			all = append(all, slices.Insert(slices.Clone(shorter), i, n-1))
		}
	}
	return all
}

func TestC02_ParentAndChildImportedAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	conns := []*pgx.Conn{w.connect(t, "org", "owner"), w.connect(t, "org", "owner"), w.connect(t, "org", "owner")}
	for round := range 60 {
		name := func(who string) string { return fmt.Sprintf("%s-%d", who, round) }
		sessions := []string{importing(name("a"), name("b")), importing(name("b"), name("c")), importing(name("c"), "")}
		for i, err := range atOnce(t, conns, sessions, round) {
			if err != nil {
				t.Errorf("%s: %v", sessions[i], err)
			}
		}
		want := fmt.Sprintf("%s>%s %s>%s", name("a"), name("b"), name("b"), name("c"))
		if got := get[string](t, w.app, family+" AND c.source_id LIKE '%-"+fmt.Sprint(round)+"'"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// atOnce runs each statement on a connection of its own, in transactions that overlap.
func atOnce(t *testing.T, conns []*pgx.Conn, statements []string, round int) []error {
	t.Helper()
	errs := make([]error, len(statements))
	begin := make(chan struct{})
	var group sync.WaitGroup
	for i := range statements {
		group.Go(func() {
			<-begin
			// All start together; who is how quick differs from round to round.
			pause := fmt.Sprintf("SELECT pg_sleep(%f);", float64((round+i)%3)/1000)
			_, err := run(t.Context(), conns[i], "BEGIN;"+statements[i]+";"+pause+"COMMIT")
			if err != nil {
				_, _ = conns[i].Exec(t.Context(), "ROLLBACK")
			}
			errs[i] = err
		})
	}
	close(begin)
	group.Wait()
	return errs
}

// Four files whose parents form a circle: no two transactions take the same locks for names, and each sees a part only.
func TestS11_NoCircleOfParentsUnderConcurrency(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// Who waits for the other finds out sooner.
	exec(t, w.hub, "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET deadlock_timeout = 20', current_database()); END $$")
	var conns []*pgx.Conn
	for range 4 {
		conns = append(conns, w.connect(t, "org", "owner"))
	}
	const circles = `
		WITH RECURSIVE up AS (
			SELECT id AS start, parent_id AS id, 1 AS steps FROM sessions WHERE parent_id IS NOT NULL
			UNION ALL
			SELECT u.start, s.parent_id, u.steps + 1 FROM up u JOIN sessions s ON s.id = u.id WHERE s.parent_id IS NOT NULL AND u.steps < 10)
		SELECT count(*) FROM up WHERE start = id`
	for round := range 25 {
		name := func(who string) string { return fmt.Sprintf("%s-%d", who, round) }
		// a and c are there already and wait for b and d, which come at once.
		exec(t, w.app, importing(name("a"), name("b")))
		exec(t, w.app, importing(name("c"), name("d")))
		refusedOrRetried(t, "imports", atOnce(t, conns[:2], []string{importing(name("b"), name("c")), importing(name("d"), name("a"))}, round))
		if got := get[int](t, w.app, circles); got != 0 {
			t.Fatalf("%d sessions are their own ancestors", got)
		}

		exec(t, w.app, importing(name("e"), ""))
		exec(t, w.app, importing(name("f"), ""))
		const adopt = "UPDATE sessions SET parent_id = (SELECT id FROM sessions WHERE source_id = '%s') WHERE source_id = '%s'"
		refusedOrRetried(t, "updates", atOnce(t, conns[2:], []string{fmt.Sprintf(adopt, name("e"), name("f")), fmt.Sprintf(adopt, name("f"), name("e"))}, round))
		if got := get[int](t, w.app, circles); got != 0 {
			t.Fatalf("%d sessions are their own ancestors", got)
		}
	}
}

// refusedOrRetried fails the test unless exactly one was refused by the rule, or told to try again because of a deadlock.
func refusedOrRetried(t *testing.T, what string, errs []error) {
	t.Helper()
	failed := 0
	for _, err := range errs {
		if err == nil {
			continue
		}
		failed++
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.ConstraintName != "sessions_parent_acyclic" && pgErr.Code != "40P01" {
			t.Errorf("%s: refused with %s", what, spell(err))
		}
	}
	if failed != 1 {
		t.Errorf("%s: %d of %d were refused, want one", what, failed, len(errs))
	}
}

// X08: what a text costs that streams in: its content, not its history. Beside it in the same run: the way that opencode goes, an UPDATE of
// the part per delta.
func TestX08_StreamingCostsTheContent(t *testing.T) { // not in parallel: the WAL is the whole server's
	w := newWorld(t)
	const deltas, naive = 10_000, 1_000
	piece := func(i int) string { return fmt.Sprintf("%x ", sha256.Sum256([]byte{byte(i), byte(i >> 8)}))[:40] }
	size := func() int64 {
		return get[int64](t, w.hub, "SELECT pg_total_relation_size('parts') + pg_total_relation_size('part_deltas')")
	}
	type cost struct {
		grown, wal int64
		took       time.Duration
	}
	measure := func(do func()) cost {
		exec(t, w.hub, "VACUUM FULL parts, part_deltas, sessions")
		exec(t, w.hub, "CHECKPOINT")
		before, wal := size(), get[int64](t, w.hub, "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
		start := time.Now()
		do()
		c := cost{took: time.Since(start), wal: get[int64](t, w.hub, "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint") - wal}
		c.grown = size() - before
		return c
	}

	exec(t, w.app, "INSERT INTO parts (org_id, id, session_id, message_id, type, data) VALUES (@org, @high, @session, @message, 'text', '{\"text\": \"\"}')")
	length, times := 0, make([]time.Duration, deltas)
	streamed := measure(func() {
		for i := range deltas {
			start := time.Now()
			if _, err := w.app.Exec(t.Context(), "INSERT INTO part_deltas (org_id, part_id, start_offset, text) VALUES ($1, $2, $3, $4)", ids["org"], ids["high"], length, piece(i)); err != nil {
				t.Fatal(err)
			}
			length += len(piece(i))
			times[i] = time.Since(start)
		}
		exec(t, w.app, "UPDATE parts SET data = (SELECT content::jsonb FROM part_contents c WHERE c.id = @high) WHERE id = @high")
	})
	content := int64(length)
	want := ""
	for i := range deltas {
		want += piece(i)
	}
	if got := get[string](t, w.app, "SELECT data ->> 'text' FROM parts WHERE id = @high"); got != want {
		t.Errorf("the text has %d bytes, want %d", len(got), len(want))
	}
	if n := get[int](t, w.hub, "SELECT count(*) FROM part_deltas WHERE part_id = @high"); n != 0 {
		t.Errorf("%d deltas are left", n)
	}

	part := get[string](t, w.app, "INSERT INTO parts (org_id, session_id, message_id, type, data) VALUES (@org, @session, @message, 'text', '{\"text\": \"\"}') RETURNING id::text")
	inPlace := measure(func() {
		for i := range naive {
			if _, err := w.app.Exec(t.Context(), "UPDATE parts SET data = jsonb_build_object('text', data ->> 'text' || $2::text) WHERE org_id = $3 AND id = $1", part, piece(i), ids["org"]); err != nil {
				t.Fatal(err)
			}
		}
	})
	exec(t, w.hub, "VACUUM parts, part_deltas")
	t.Logf("content %d bytes; streamed in %d deltas: tables %+d, WAL %d, %v; in place, %d: tables %+d, WAL %d, %v", content, deltas, streamed.grown, streamed.wal, streamed.took, naive, inPlace.grown, inPlace.wal, inPlace.took)

	// Before any vacuum: the text, as it was folded in ever larger pieces, and the rows of one fold's deltas.
	if ratio := float64(streamed.grown) / float64(content); ratio > 12 {
		t.Errorf("the tables grew by %.1f times the content", ratio)
	}
	if ratio := float64(streamed.wal) / float64(content); ratio > 25 {
		t.Errorf("%.1f times the content went to the WAL", ratio)
	}
	median := func(times []time.Duration) time.Duration { slices.Sort(times); return times[len(times)/2] }
	if first, last := median(times[:1000]), median(times[deltas-1000:]); last > 5*first {
		t.Errorf("the last deltas took %v, the first %v", last, first)
	}
	// In place each delta writes the whole text: per delta of a tenth of them it is worse already, and the more there are the worse.
	if a, b := float64(streamed.grown)/deltas, float64(inPlace.grown)/naive; a*20 > b {
		t.Errorf("a delta costs %.0f bytes of table, in place %.0f", a, b)
	}
	if a, b := float64(streamed.wal)/deltas, float64(inPlace.wal)/naive; a*10 > b {
		t.Errorf("a delta costs %.0f bytes of WAL, in place %.0f", a, b)
	}
}

// A list of summaries reads as little of a long part as of a short one.
func TestSummariesDoNotReadLongParts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.app, "DELETE FROM messages WHERE session_id = @session")
	for range 3 {
		exec(t, w.app, `WITH m AS (INSERT INTO messages (org_id, session_id, role) VALUES (@org, @session, 'user') RETURNING *)
			INSERT INTO parts (org_id, session_id, message_id, type, data) SELECT org_id, session_id, id, 'text', jsonb_build_object('text',
				(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 100000) n)) FROM m`)
	}
	exec(t, w.hub, "ANALYZE")
	buffers := regexp.MustCompile(`Buffers: shared hit=(\d+)(?: read=(\d+))?`)
	for _, name := range []string{"ListMessages", "ListParts", "ListPartsByType"} {
		q := queryNamed(t, name)
		q.prepare(t, w.app)
		read := map[string]int{}
		for _, summary := range []string{"true", "false"} {
			plan := explain(t, w.app, "(ANALYZE, BUFFERS, TIMING off) "+q.execute(t, "summary", summary, "type", "'text'"))
			for _, n := range buffers.FindStringSubmatch(plan)[1:] {
				pages, _ := strconv.Atoi(n)
				read[summary] += pages
			}
		}
		if read["true"]*20 > read["false"] {
			t.Errorf("%s: summaries read %d pages, the whole %d", name, read["true"], read["false"])
		}
	}
}
