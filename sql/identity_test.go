package sql_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const identityFixture = `
BEGIN;
SET CONSTRAINTS ALL DEFERRED;
INSERT INTO accounts (id, kind, display_name, email) VALUES
	(@owner, 'human', 'owner', 'owner@one'), (@co_owner, 'human', 'co-owner', 'co-owner@one'), (@admin, 'human', 'admin', 'admin@one'),
	(@other_owner, 'human', 'owner', 'owner@other'), (@nobody, 'human', 'nobody', 'nobody@one');
INSERT INTO organizations (id, slug, name, owner_id) VALUES (@org, 'one', 'One', @owner), (@other_org, 'other', 'Other', @other_owner);
INSERT INTO accounts (id, kind, display_name, home_org_id) VALUES (@member, 'llm', 'member', @org); -- the platform made the others
INSERT INTO organization_members (org_id, account_id, membership_level) VALUES
	(@org, @owner, 'owner'), (@org, @co_owner, 'owner'), (@org, @admin, 'admin'), (@org, @member, 'member'), (@other_org, @other_owner, 'owner');
INSERT INTO api_keys (org_id, id, account_id, name, key_hash, scopes) VALUES
	(@org, @key, @member, 'key', sha256('key'), '{projects:read,projects:write}'), (@org, @owner_key, @owner, 'owner key', sha256('owner key'), '{*}'),
	(@other_org, @other_key, @other_owner, 'key', sha256('other key'), '{*}');
COMMIT;`

// notMetadata and metadata are what W01 refuses and lets pass.
var (
	notMetadata = []string{
		`'null'`, `'1'`, `'true'`, `'"_a"'`, `'[]'`, `'[{"_a": {}}]'`, `'{"a": {}}'`, `'{"": {}}'`, `'{"_": {}}'`, `'{"_1": {}}'`, `'{"_A": {}}'`,
		`'{"_a-b": {}}'`, `'{"_a b": {}}'`, `'{"_a\n": {}}'`, `'{"_ä": {}}'`, `'{" _a": {}}'`, `'{"_a": null}'`, `'{"_a": 1}'`, `'{"_a": "x"}'`,
		`'{"_a": []}'`, `'{"_a": {}, "b": {}}'`, `'{"_a": {}, "_b": 1}'`,
	}
	metadata = []string{`'{}'`, `'{"_a": {}}'`, `'{"_a1_b": {"x": [1, null, {"y": "z"}]}, "_c": {"d": {}, "": null}}'`}

	notObjects = []string{`'null'`, `'1'`, `'true'`, `'"x"'`, `'[]'`, `'[{}]'`}
	objects    = []string{`'{}'`, `'{"": null, "a": [1]}'`}

	notUUIDv7 = []string{
		"'ffffffff-0000-4000-8000-000000000001'", "'ffffffff-0000-6000-8000-000000000001'", "'ffffffff-0000-8000-8000-000000000001'",
		"'ffffffff-0000-7000-0000-000000000001'", "'ffffffff-0000-7000-4000-000000000001'", "'ffffffff-0000-7000-c000-000000000001'",
		"'ffffffff-ffff-ffff-ffff-ffffffffffff'",
	}
	uuidv7 = []string{"'ffffffff-0000-7000-8000-000000000001'", "'ffffffff-ffff-7fff-bfff-ffffffffffff'", "hub_uuidv7()"}

	notSlugs = []string{"''", "'A'", "'a_b'", "'-a'", "'a-'", "'a--b'", "'a b'", "'ä'", "E'a\\n'", "repeat('a', 101)"}
	slugs    = []string{"'a'", "'0'", "'a-1-b'", "repeat('a', 100)"}

	// tooFar are levels that nobody knows: what does not understand them refuses.
	tooFar = []string{"'nonsense'", "''", "'Owner'"}
)

const newOrganization = `
	WITH o AS (INSERT INTO organizations (id, slug, name, owner_id) VALUES (%s) RETURNING id, owner_id)
	INSERT INTO organization_members (org_id, account_id, membership_level) SELECT id, owner_id, 'owner' FROM o`

var identityRules = []ruleCase{
	{rule: "accounts_pkey", hub: true, sql: "INSERT INTO accounts (id, kind, display_name) VALUES (??, 'llm', 'x')", bad: []string{"@owner"}, good: []string{"@new"}},
	{rule: "accounts_id_version_check", hub: true, sql: "INSERT INTO accounts (id, kind, display_name) VALUES (??, 'llm', 'x')", bad: notUUIDv7, good: uuidv7},
	{rule: "accounts_kind_check", hub: true, sql: "INSERT INTO accounts (kind, display_name) VALUES (??, 'x')", bad: []string{"''", "'bot'", "'Human'"}, good: []string{"'human'", "'llm'", "'service'"}},
	{rule: "accounts_access_level_check", hub: true, sql: "UPDATE accounts SET access_level = ?? WHERE id = @member", bad: []string{"'owner'", "'Admin'"}, good: []string{"'admin'", "'member'"}},
	{rule: "accounts_status_check", hub: true, sql: "UPDATE accounts SET status = ?? WHERE id = @member", bad: []string{"'deleted'", "''"}, good: []string{"'active'", "'suspended'", "'deactivated'"}},
	{rule: "accounts_visible", sql: "INSERT INTO accounts (kind, display_name, home_org_id) VALUES ('human', 'x', ??)", bad: []string{"@other_org", "NULL", "@new"}, good: []string{"@org"}},
	{rule: "accounts_visible", sql: "INSERT INTO accounts (kind, display_name, home_org_id) VALUES (??, 'x', @org)", bad: []string{"'system'"}, good: []string{"'llm'"}},
	{rule: "accounts_home_org_id_fkey", hub: true, sql: "INSERT INTO accounts (kind, display_name, home_org_id) VALUES ('human', 'x', ??)", bad: []string{"@new"}, good: []string{"@org", "NULL"}},
	{rule: "accounts_home_org_immutable", hub: true, sql: "UPDATE accounts SET home_org_id = ?? WHERE id = @member", bad: []string{"@other_org", "@new"}, good: []string{"@org", "NULL"}},
	{rule: "accounts_home_org_immutable", hub: true, sql: "UPDATE accounts SET home_org_id = ?? WHERE id = @owner", bad: []string{"@org", "@other_org"}, good: []string{"NULL"}},
	// X01, S01: platform admins, and of others only.
	{rule: "accounts_access_level_by_platform_admin", state: "42501", sql: "SELECT set_config('hub.platform', ??, true); UPDATE accounts SET access_level = 'admin' WHERE id = @member", bad: []string{"''", "'off'"}, good: []string{"'on'"}},
	{
		rule: "accounts_access_level_by_platform_admin", state: "42501", sql: "INSERT INTO accounts (kind, display_name, home_org_id, access_level) VALUES ('human', 'x', @org, ??)",
		bad: []string{"'admin'"}, good: []string{"'member'"},
	},
	{
		rule: "accounts_access_level_by_platform_admin", state: "42501", before: as("owner", "platform", "'on'") + "UPDATE accounts SET access_level = 'admin' WHERE id = @member;" + as("owner"),
		sql: "UPDATE accounts SET access_level = ?? WHERE id = @member", bad: []string{"'member'"}, good: []string{"'admin'"},
	},
	{rule: "accounts_status_by_platform_admin", state: "42501", sql: "SELECT set_config('hub.platform', ??, true); UPDATE accounts SET status = 'suspended' WHERE id = @member", bad: []string{"''", "'off'"}, good: []string{"'on'"}},
	{rule: "accounts_deleted_by_platform_admin", state: "42501", sql: "SELECT set_config('hub.platform', ??, true); DELETE FROM accounts WHERE id = @member", bad: []string{"''", "'off'"}, good: []string{"'on'"}},
	{rule: "accounts_level_and_status_not_own", state: "42501", before: as("owner", "platform", "'on'"), sql: "UPDATE accounts SET access_level = 'admin' WHERE id = ??", bad: []string{"@owner"}, good: []string{"@member", "@co_owner"}},
	{rule: "accounts_level_and_status_not_own", state: "42501", before: as("owner", "platform", "'on'"), sql: "UPDATE accounts SET status = 'suspended' WHERE id = ??", bad: []string{"@owner"}, good: []string{"@member", "@co_owner"}},
	{rule: "accounts_profile_by_its_managers", state: "42501", before: as("admin"), sql: "UPDATE accounts SET display_name = 'x' WHERE id = ??", bad: []string{"@owner", "@co_owner", "@admin"}, good: []string{"@member"}},
	{rule: "accounts_profile_by_its_managers", state: "42501", before: as("member"), sql: "UPDATE accounts SET display_name = 'x' WHERE id = ??", bad: []string{"@owner", "@admin"}, good: []string{"@member"}},
	{
		rule: "accounts_profile_by_its_managers", state: "42501", sql: "SELECT set_config('hub.membership_level', ??, true); UPDATE accounts SET display_name = 'x' WHERE id = @member",
		bad: append([]string{"'member'"}, tooFar...), good: []string{"'admin'", "'owner'"},
	},
	{
		rule: "accounts_profile_by_its_managers", state: "42501", before: as("owner"), sql: "UPDATE accounts SET ?? WHERE id = @co_owner",
		bad: []string{"display_name = 'x'", "email = 'x@one'", "email = NULL", `data = '{"a": 1}'`, `metadata = '{"_a": {}}'`}, good: []string{"display_name = display_name, data = data"},
	},
	{rule: "accounts_profile_by_its_managers", state: "42501", sql: "SELECT set_config('hub.platform', ??, true); UPDATE accounts SET display_name = 'x' WHERE id = @co_owner", bad: []string{"''"}, good: []string{"'on'"}},
	{
		rule: "accounts_status_transition", hub: true, before: "UPDATE accounts SET status = 'deactivated' WHERE id = @member",
		sql: "UPDATE accounts SET status = ?? WHERE id = @member", bad: []string{"'suspended'"}, good: []string{"'active'", "'deactivated'"},
	},
	{
		rule: "accounts_email_domain", hub: true, sql: "UPDATE accounts SET email = ?? WHERE id = @member", // an llm
		bad:  []string{"'a@b'", "'a@dev'", "'a@alk.dev.example'", "'a@evilalk.dev'", "'alk.dev@b'", "'a@alk-dev'"},
		good: []string{"'a@alk.dev'", "'a@ALK.dev'", "'a@bots.alk.dev'", "'a@b.C.Alk.Dev'", "NULL"},
	},
	{
		rule: "accounts_email_domain", hub: true, sql: "UPDATE accounts SET email = ?? WHERE id = @owner", // a person
		bad: []string{"'a@alk.dev'", "'a@ALK.dev'", "'a@bots.alk.dev'", "'a@b.C.Alk.Dev'", "'a@alk.dev.'"}, good: []string{"'a@b'", "'a@dev'", "'a@alk.dev.example'", "'a@evilalk.dev'", "'alk.dev@b'", "NULL"},
	},
	{
		rule: "accounts_email_domain", hub: true, before: "INSERT INTO reserved_email_domains (domain) VALUES ('bots.example')",
		sql: "INSERT INTO accounts (kind, display_name, email) VALUES (??)", bad: []string{"'human', 'x', 'a@bots.example'", "'service', 'x', 'a@example'", "'llm', 'x', 'a@b'"},
		good: []string{"'human', 'x', 'a@example'", "'service', 'x', 'a@bots.example'", "'llm', 'x', 'a@x.bots.example'", "'service', 'x', NULL"},
	},
	{rule: "reserved_email_domains_pkey", hub: true, sql: "INSERT INTO reserved_email_domains (domain) VALUES (??)", bad: []string{"'alk.dev'"}, good: []string{"'bots.alk.dev'"}},
	{
		rule: "reserved_email_domains_shape_check", hub: true, sql: "INSERT INTO reserved_email_domains (domain) VALUES (??)",
		bad: []string{"''", "'Alk.dev'", "'.alk.dev'", "'alk.dev.'", "'a..b'", "'a b'", "'@alk.dev'", "'a@b'", "E'a\\n'", "repeat('a', 254)"}, good: []string{"'example'", "'a-1.b'", "repeat('a', 253)"},
	},
	{rule: "account_status_transitions_pkey", hub: true, sql: "INSERT INTO account_status_transitions (from_status, to_status) VALUES ('active', ??)", bad: []string{"'suspended'"}, good: []string{"'new'"}},
	{rule: "accounts_display_name_length_check", hub: true, sql: "UPDATE accounts SET display_name = ?? WHERE id = @member", bad: []string{"''", "repeat('ä', 201)"}, good: []string{"'x'", "repeat('ä', 200)"}},
	{
		rule: "accounts_email_shape_check", hub: true, sql: "UPDATE accounts SET email = ?? WHERE id = @owner",
		bad:  []string{"''", "'a'", "'a@'", "'@b'", "'a b@c'", "'a@b c'", "'a@b@c'", "E'a@b\\n'", "'a@' || repeat('b', 253)"},
		good: []string{"'a@b'", "'A.b+c@d.example'", "'a@' || repeat('b', 252)", "NULL"},
	},
	{rule: "accounts_email_key", hub: true, sql: "UPDATE accounts SET email = ?? WHERE id = @owner", bad: []string{"'co-owner@one'", "'Co-Owner@ONE'"}, good: []string{"'owner@two'", "'owner@one'"}},
	{rule: "accounts_system_key", hub: true, sql: "INSERT INTO accounts (kind, display_name) VALUES (??, 'x')", bad: []string{"'system'"}, good: []string{"'service'"}},
	{rule: "accounts_data_object_check", hub: true, sql: "UPDATE accounts SET data = ?? WHERE id = @member", bad: notObjects, good: objects},
	{rule: "accounts_metadata_check", hub: true, sql: "UPDATE accounts SET metadata = ?? WHERE id = @member", bad: notMetadata, good: metadata},
	{
		rule: "accounts_identity_immutable", hub: true, sql: "UPDATE accounts SET ?? WHERE id = @member",
		bad: []string{"id = @new", "kind = 'service'", "created_at = created_at - interval '1 hour'"}, good: []string{"display_name = 'x'", "kind = 'llm', id = id"},
	},
	{rule: "accounts_system_fixed", hub: true, state: "42501", sql: "UPDATE accounts SET display_name = 'x' WHERE id = ??", bad: []string{"@system"}, good: []string{"@nobody"}},
	{rule: "accounts_system_fixed", hub: true, state: "42501", sql: "DELETE FROM accounts WHERE id = ??", bad: []string{"@system"}, good: []string{"@nobody"}},

	{rule: "organizations_pkey", hub: true, sql: fmt.Sprintf(newOrganization, "??, 'x', 'x', @owner"), bad: []string{"@org"}, good: []string{"@new"}},
	{rule: "organizations_id_version_check", hub: true, sql: fmt.Sprintf(newOrganization, "??, 'x', 'x', @owner"), bad: notUUIDv7, good: uuidv7},
	{rule: "organizations_slug_key", hub: true, sql: fmt.Sprintf(newOrganization, "@new, ??, 'x', @owner"), bad: []string{"'one'"}, good: []string{"'two'"}},
	{rule: "organizations_slug_shape_check", hub: true, sql: "UPDATE organizations SET slug = ?? WHERE id = @org", bad: notSlugs, good: slugs},
	{rule: "organizations_name_length_check", hub: true, sql: "UPDATE organizations SET name = ?? WHERE id = @org", bad: []string{"''", "repeat('ä', 201)"}, good: []string{"'x'", "repeat('ä', 200)"}},
	{rule: "organizations_data_object_check", hub: true, sql: "UPDATE organizations SET data = ?? WHERE id = @org", bad: notObjects, good: objects},
	{rule: "organizations_metadata_check", hub: true, sql: "UPDATE organizations SET metadata = ?? WHERE id = @org", bad: notMetadata, good: metadata},
	{
		rule: "organizations_identity_immutable", hub: true, sql: "UPDATE organizations SET ?? WHERE id = @org",
		bad: []string{"id = @new", "created_at = created_at - interval '1 hour'"}, good: []string{"name = 'x'", "id = id"},
	},
	{
		// The other foreign key refuses an owner that there is not as well, so it waits.
		rule: "organizations_owner_id_fkey", hub: true, before: "SET CONSTRAINTS organizations_owner_is_member_fkey DEFERRED",
		sql: fmt.Sprintf(newOrganization, "@new, 'x', 'x', ??"), bad: []string{"@new"}, good: []string{"@nobody"},
	},
	{rule: "organizations_owner_id_fkey_in_use", hub: true, before: "SET CONSTRAINTS organizations_owner_is_member_fkey DEFERRED", sql: "DELETE FROM accounts WHERE id = ??", bad: []string{"@owner"}, good: []string{"@co_owner", "@member", "@nobody"}},
	{rule: "organizations_owner_is_member_fkey", hub: true, sql: "UPDATE organizations SET owner_id = ?? WHERE id = @org", bad: []string{"@member", "@nobody", "@other_owner"}, good: []string{"@co_owner"}},
	{rule: "organizations_owner_is_member_fkey_in_use", hub: true, sql: "UPDATE organization_members SET membership_level = 'admin' WHERE account_id = ??", bad: []string{"@owner"}, good: []string{"@co_owner"}},
	{rule: "organizations_owner_is_member_fkey_in_use", hub: true, sql: "DELETE FROM organization_members WHERE account_id = ??", bad: []string{"@owner"}, good: []string{"@co_owner"}},

	// W16: by the accountable owner or a platform admin, to a member.
	{
		rule: "organizations_transferred_by_owner", state: "42501", sql: "SELECT set_config('hub.account_id', ??, true); SELECT transfer_organization(@org, @co_owner)",
		bad: []string{"@co_owner"}, good: []string{"@owner"},
	},
	{
		rule: "organizations_transferred_by_owner", state: "42501", before: as("co_owner"), sql: "SELECT set_config('hub.platform', ??, true); SELECT transfer_organization(@org, @member)",
		bad: []string{"''"}, good: []string{"'on'"},
	},
	{rule: "organizations_new_owner_is_member", sql: "SELECT transfer_organization(@org, ??)", bad: []string{"@nobody", "@other_owner", "@new", "@system"}, good: []string{"@co_owner", "@admin", "@member", "@owner"}},

	{rule: "organization_members_tenant", sql: "INSERT INTO organization_members (org_id, account_id) VALUES (??, @nobody)", bad: []string{"@other_org", "@new"}, good: []string{"@org"}},
	// Nobody gives or takes a level above their own; everybody may leave.
	{
		rule: "organization_members_level_granted", state: "42501", before: as("admin"), sql: "SELECT set_config('hub.membership_level', ??, true); INSERT INTO organization_members (org_id, account_id) VALUES (@org, @nobody)",
		bad: append([]string{"'member'"}, tooFar...), good: []string{"'admin'", "'owner'"},
	},
	{
		rule: "organization_members_level_granted", state: "42501", before: as("admin"), sql: "INSERT INTO organization_members (org_id, account_id, membership_level) VALUES (@org, @nobody, ??)",
		bad: []string{"'owner'"}, good: []string{"'member'", "'admin'"},
	},
	{rule: "organization_members_level_granted", state: "42501", before: as("admin"), sql: "UPDATE organization_members SET membership_level = ?? WHERE account_id = @member", bad: []string{"'owner'"}, good: []string{"'admin'", "'member'"}},
	{rule: "organization_members_level_granted", state: "42501", before: as("admin"), sql: "UPDATE organization_members SET membership_level = 'member' WHERE account_id = ??", bad: []string{"@co_owner"}, good: []string{"@admin"}},
	{rule: "organization_members_level_granted", state: "42501", before: as("admin"), sql: `UPDATE organization_members SET metadata = '{"_a": {}}' WHERE account_id = ??`, bad: []string{"@owner", "@co_owner"}, good: []string{"@admin", "@member"}},
	{rule: "organization_members_level_granted", state: "42501", before: as("admin"), sql: "DELETE FROM organization_members WHERE account_id = ??", bad: []string{"@co_owner"}, good: []string{"@admin", "@member"}},
	{rule: "organization_members_level_granted", state: "42501", before: as("member"), sql: "DELETE FROM organization_members WHERE account_id = ??", bad: []string{"@admin", "@co_owner"}, good: []string{"@member"}},
	{
		rule: "organization_members_level_granted", state: "42501", before: as("member"), sql: "SELECT set_config('hub.platform', ??, true); UPDATE organization_members SET membership_level = 'owner' WHERE account_id = @member",
		bad: []string{"''"}, good: []string{"'on'"},
	},
	{
		rule: "organization_members_level_granted", state: "42501", before: as("member"), sql: `SELECT set_config('hub.platform', ??, true); UPDATE organization_members SET metadata = '{"_a": {}}' WHERE account_id = @member`,
		bad: []string{"''"}, good: []string{"'on'"},
	},
	{rule: "organization_members_pkey", hub: true, sql: "INSERT INTO organization_members (org_id, account_id) VALUES (@org, ??)", bad: []string{"@member"}, good: []string{"@nobody", "@other_owner"}},
	{
		// What the primary key refuses already; it is there to be referred to (C13).
		rule: "organization_members_level_key", hub: true, before: "ALTER TABLE organization_members DROP CONSTRAINT organization_members_pkey CASCADE",
		sql: "INSERT INTO organization_members (org_id, account_id, membership_level) VALUES (@org, @member, ??)", bad: []string{"'member'"}, good: []string{"'admin'"},
	},
	{rule: "organization_members_org_id_fkey", hub: true, sql: "INSERT INTO organization_members (org_id, account_id) VALUES (??, @nobody)", bad: []string{"@new"}, good: []string{"@org"}},
	{rule: "organization_members_account_id_fkey", hub: true, sql: "INSERT INTO organization_members (org_id, account_id) VALUES (@org, ??)", bad: []string{"@new"}, good: []string{"@nobody"}},
	{
		rule: "organization_members_level_check", hub: true, sql: "UPDATE organization_members SET membership_level = ?? WHERE account_id = @member",
		bad: []string{"''", "'guest'", "'Owner'"}, good: []string{"'owner'", "'admin'", "'member'"},
	},
	{rule: "organization_members_not_system_check", hub: true, sql: "INSERT INTO organization_members (org_id, account_id) VALUES (@org, ??)", bad: []string{"@system"}, good: []string{"@nobody"}},
	{rule: "organization_members_metadata_check", hub: true, sql: "UPDATE organization_members SET metadata = ?? WHERE account_id = @member", bad: notMetadata, good: metadata},
	{
		rule: "organization_members_identity_immutable", hub: true, sql: "UPDATE organization_members SET ?? WHERE account_id = @member",
		bad: []string{"org_id = @other_org", "account_id = @nobody", "created_at = created_at - interval '1 hour'"}, good: []string{"membership_level = 'admin'", "org_id = org_id"},
	},

	{rule: "api_keys_pkey", hub: true, sql: "INSERT INTO api_keys (org_id, id, account_id, name, key_hash) VALUES (@org, ??, @member, 'x', sha256('x'))", bad: []string{"@key"}, good: []string{"@new", "@other_key"}},
	{rule: "api_keys_id_version_check", hub: true, sql: "INSERT INTO api_keys (org_id, id, account_id, name, key_hash) VALUES (@org, ??, @member, 'x', sha256('x'))", bad: notUUIDv7, good: uuidv7},
	{rule: "api_keys_key_hash_key", hub: true, sql: "INSERT INTO api_keys (org_id, account_id, name, key_hash) VALUES (@org, @member, 'x', sha256(??))", bad: []string{"'key'", "'other key'"}, good: []string{"'new key'"}},
	{
		rule: "api_keys_key_hash_length_check", hub: true, sql: "INSERT INTO api_keys (org_id, account_id, name, key_hash) VALUES (@org, @member, 'x', ??)",
		bad: []string{"''", "sha224('x')", "sha512('x')", "sha256('x') || '\\x00'"}, good: []string{"sha256('x')"},
	},
	{rule: "api_keys_member_fkey", hub: true, sql: "INSERT INTO api_keys (org_id, account_id, name, key_hash) VALUES (@org, ??, 'x', sha256('x'))", bad: []string{"@other_owner", "@nobody", "@new"}, good: []string{"@owner", "@member"}},
	{rule: "api_keys_name_length_check", hub: true, sql: "UPDATE api_keys SET name = ?? WHERE id = @key", bad: []string{"''", "repeat('ä', 201)"}, good: []string{"'x'", "repeat('ä', 200)"}},
	{
		rule: "api_keys_scopes_known_shape_check", hub: true, before: "UPDATE accounts SET access_level = 'admin' WHERE id = @member", sql: "UPDATE api_keys SET scopes = ?? WHERE id = @key",
		bad: []string{
			"'{x}'", "'{projects}'", "'{projects:}'", "'{:read}'", "'{projects:delete}'", "'{Projects:read}'", "'{projects:*}'", "'{**}'", "'{NULL}'", "'{projects:read,NULL}'",
			`'{""}'`, `'{projects:read,""}'`, `'{"projects:read "}'`, `'{"projects:read sessions:read"}'`, `E'{"projects:read\n"}'`, "'{platform:read}'",
		},
		good: []string{"'{}'", "'{*}'", "'{platform:*}'", "'{*,platform:*}'", "'{projects:read,sessions:write,keys:admin}'"},
	},
	{
		rule: "api_keys_resources_shape_check", hub: true, sql: "UPDATE api_keys SET resources = ?? WHERE id = @key",
		bad: []string{
			"'{x}'", "'{project:}'", "'{project:1}'", "'{NULL}'", "ARRAY['project:' || @project, NULL]", "ARRAY['project:' || upper(@high)]", "ARRAY['session:' || @session]", `'{""}'`, "ARRAY['project:' || @project, '']",
			"ARRAY['project:' || @project || ' ']", "ARRAY['project:' || @project || ' project:' || @empty_project]", "array_fill('project:' || @project, ARRAY[101])",
		},
		good: []string{"'{}'", "ARRAY['project:' || @project]", "ARRAY['project:' || @project, 'project:' || @empty_project]", "array_fill('project:' || @project, ARRAY[100])"},
	},
	{
		rule: "api_keys_tags_shape_check", hub: true, sql: "UPDATE api_keys SET tags = ?? WHERE id = @key",
		bad: []string{
			"'{NULL}'", "'{a,NULL}'", "'{A}'", "'{-a}'", "'{ä}'", `'{""}'`, `'{a,""}'`, `'{"a "}'`, `'{" a"}'`, `'{"a b"}'`, `E'{"a\n"}'`, "ARRAY[repeat('a', 51)]", "array_fill('a'::text, ARRAY[51])",
		},
		good: []string{"'{}'", "'{a}'", "'{a.b_c:d/e-1,0}'", "ARRAY[repeat('a', 50)]", "array_fill('a'::text, ARRAY[50])"},
	},
	{
		rule: "api_keys_expires_after_creation_check", hub: true, sql: "INSERT INTO api_keys (org_id, account_id, name, key_hash, expires_at) VALUES (@org, @member, 'x', sha256('x'), ??)",
		bad: []string{"now()", "now() - interval '1 hour'", "'-infinity'"}, good: []string{"now() + interval '1 second'", "NULL"},
	},
	{rule: "api_keys_expires_in_reach_check", hub: true, sql: "UPDATE api_keys SET expires_at = ?? WHERE id = @key", bad: []string{"'infinity'", "'9999-12-31T00:00:00Z'", "'10000-01-01T00:00:00Z'"}, good: []string{"'9999-12-30T23:59:59Z'", "NULL"}},
	{rule: "api_keys_rotated_to_another_check", hub: true, sql: "UPDATE api_keys SET rotated_to_id = ?? WHERE id = @key", bad: []string{"@key"}, good: []string{"@owner_key", "NULL"}},
	{rule: "api_keys_rotated_to_id_fkey", hub: true, sql: "UPDATE api_keys SET rotated_to_id = ?? WHERE id = @key", bad: []string{"@new", "@other_key"}, good: []string{"@owner_key", "NULL"}},
	// W02: revoked is revoked.
	{
		rule: "api_keys_revoked_for_good", hub: true, before: "UPDATE api_keys SET revoked_at = now() - interval '1 minute' WHERE id = @key", sql: "UPDATE api_keys SET ?? WHERE id = @key",
		bad: []string{
			"revoked_at = NULL", "revoked_at = now()", "revoked_at = now() + interval '1 hour'", "revoked_at = revoked_at - interval '1 second'", "name = 'x'", "scopes = '{}'", "resources = ARRAY['project:' || @project]",
			"tags = '{x}'", "enabled = false", "expires_at = now() + interval '1 hour'", `metadata = '{"_a": {}}'`, "rotated_to_id = @owner_key",
		},
		good: []string{"revoked_at = revoked_at, name = 'key'", "last_used_at = now()"},
	},
	{
		rule: "api_keys_rotated_once", hub: true, before: "UPDATE api_keys SET rotated_to_id = @owner_key WHERE id = @key",
		sql: "UPDATE api_keys SET rotated_to_id = ?? WHERE id = @key", bad: []string{"@new", "NULL"}, good: []string{"@owner_key"},
	},
	{
		rule: "api_keys_grace_only_shrinks", hub: true, before: "UPDATE api_keys SET rotated_to_id = @owner_key, expires_at = now() + interval '1 hour' WHERE id = @key",
		sql: "UPDATE api_keys SET expires_at = ?? WHERE id = @key", bad: []string{"NULL", "'infinity'", "now() + interval '2 hours'"}, good: []string{"now() + interval '1 hour'", "now() + interval '1 minute'", "now()"},
	},
	{
		// A grace period does not pass the key's own expiry.
		rule: "api_keys_grace_only_shrinks", hub: true, before: "UPDATE api_keys SET expires_at = now() + interval '1 hour' WHERE id = @key",
		sql: "UPDATE api_keys SET rotated_to_id = @owner_key, expires_at = ?? WHERE id = @key", bad: []string{"NULL", "now() + interval '2 hours'"}, good: []string{"now() + interval '1 hour'", "now() + interval '1 minute'"},
	},

	{rule: "api_keys_tenant", sql: "INSERT INTO api_keys (org_id, account_id, name, key_hash) VALUES (??, @owner, 'x', sha256('x'))", bad: []string{"@other_org", "@new"}, good: []string{"@org"}},
	{rule: "api_keys_limited", before: as("member"), sql: "INSERT INTO api_keys (org_id, account_id, name, key_hash) VALUES (@org, ??, 'x', sha256('x'))", bad: []string{"@nobody", "@new"}, good: []string{"@member"}},
	// A key cannot grant what its creator lacks: level, scopes, resources.
	{
		rule: "api_keys_holder_within_level", state: "42501", before: as("member"), sql: "INSERT INTO api_keys (org_id, account_id, name, key_hash) VALUES (@org, ??, 'x', sha256('x'))",
		bad: []string{"@owner", "@co_owner", "@admin"}, good: []string{"@member"},
	},
	{
		rule: "api_keys_holder_within_level", state: "42501", before: as("admin"), sql: "INSERT INTO api_keys (org_id, account_id, name, key_hash) VALUES (@org, ??, 'x', sha256('x'))",
		bad: []string{"@owner", "@co_owner"}, good: []string{"@admin", "@member"},
	},
	{
		// W16: with a key of the accountable owner's one could hand over the organisation.
		rule: "api_keys_holder_within_level", state: "42501", before: as("co_owner"), sql: "INSERT INTO api_keys (org_id, account_id, name, key_hash) VALUES (@org, ??, 'x', sha256('x'))",
		bad: []string{"@owner"}, good: []string{"@co_owner", "@admin"},
	},
	{rule: "api_keys_holder_within_level", state: "42501", before: as("admin"), sql: "UPDATE api_keys SET name = 'x' WHERE id = ??", bad: []string{"@owner_key"}, good: []string{"@key"}},
	{rule: "api_keys_holder_within_level", state: "42501", before: as("admin"), sql: "UPDATE api_keys SET revoked_at = now() WHERE id = ??", bad: []string{"@owner_key"}, good: []string{"@key"}},
	{rule: "api_keys_holder_within_level", state: "42501", before: as("admin"), sql: "SELECT set_config('hub.platform', ??, true); UPDATE api_keys SET enabled = false WHERE id = @owner_key", bad: []string{"''"}, good: []string{"'on'"}},
	{
		// W02: revoked for good would not be, if somebody could make another key meanwhile.
		rule: "account_is_deactivated", before: as("owner", "platform", "'on'") + "UPDATE accounts SET status = 'deactivated' WHERE id = @member",
		sql: "INSERT INTO api_keys (org_id, account_id, name, key_hash) VALUES (@org, ??, 'x', sha256('x'))", bad: []string{"@member"}, good: []string{"@admin", "@owner"},
	},
	{
		rule: "account_is_deactivated", before: as("owner", "platform", "'on'") + "UPDATE accounts SET status = 'deactivated' WHERE id = @member",
		sql: "SELECT transfer_organization(@org, ??)", bad: []string{"@member"}, good: []string{"@admin"},
	},
	{
		rule: "api_keys_scopes_granted", state: "42501", before: as("owner", "key_scopes", "'keys:write projects:read'"),
		sql:  "INSERT INTO api_keys (org_id, account_id, name, key_hash, scopes) VALUES (@org, @member, 'x', sha256('x'), ??)",
		bad:  []string{"'{*}'", "'{projects:write}'", "'{projects:read,sessions:read}'"},
		good: []string{"'{}'", "'{projects:read}'", "'{projects:read,keys:write}'"},
	},
	{
		// What the key has already it may keep.
		rule: "api_keys_scopes_granted", state: "42501", before: as("owner", "key_scopes", "'keys:write'"), sql: "UPDATE api_keys SET scopes = ?? WHERE id = @key",
		bad: []string{"'{*}'", "'{projects:read,projects:write,sessions:read}'", "'{projects:admin}'"}, good: []string{"'{projects:read,projects:write}'", "'{projects:write,keys:write}'", "'{}'"},
	},
	{
		// X01: * holds nothing of the platform's.
		rule: "api_keys_scopes_granted", state: "42501", before: as("owner", "platform", "'on'") + "UPDATE accounts SET access_level = 'admin' WHERE id = @member;" + as("owner"),
		sql: "INSERT INTO api_keys (org_id, account_id, name, key_hash, scopes) VALUES (@org, @member, 'x', sha256('x'), ??)", bad: []string{"'{platform:*}'", "'{*,platform:*}'"}, good: []string{"'{*}'", "'{anything:admin}'"},
	},
	{
		rule: "api_keys_platform_scope_for_admins", hub: true, before: "UPDATE accounts SET access_level = 'admin' WHERE id = @admin",
		sql: "INSERT INTO api_keys (org_id, account_id, name, key_hash, scopes) VALUES (@org, ??, 'x', sha256('x'), '{*,platform:*}')", bad: []string{"@owner", "@member"}, good: []string{"@admin"},
	},
	{
		rule: "api_keys_platform_scope_for_admins", before: as("owner", "platform", "'on'", "key_scopes", "'* platform:*'") + "UPDATE accounts SET access_level = 'admin' WHERE id = @member",
		sql: "UPDATE api_keys SET scopes = '{platform:*}' WHERE id = ??", bad: []string{"@owner_key"}, good: []string{"@key"},
	},
	{
		rule: "api_keys_resources_granted", state: "42501", before: as("owner", "project_ids", "'{' || @project || ',' || @new || '}'"),
		sql:  "INSERT INTO api_keys (org_id, account_id, name, key_hash, resources) VALUES (@org, @member, 'x', sha256('x'), ??)",
		bad:  []string{"'{}'", "ARRAY['project:' || @empty_project]", "ARRAY['project:' || @project, 'project:' || @empty_project]"},
		good: []string{"ARRAY['project:' || @project]", "ARRAY['project:' || @new, 'project:' || @project]"},
	},
	{
		rule: "api_keys_resources_granted", state: "42501",
		before: "INSERT INTO api_keys (org_id, id, account_id, name, key_hash, resources) VALUES (@org, @new, @owner, 'x', sha256('x'), ARRAY['project:' || @project]);" + as("owner", "project_ids", "'{' || @project || '}'"),
		sql:    "UPDATE api_keys SET ??", bad: []string{"name = 'x' WHERE id = @key", "resources = '{}' WHERE id = @new", "resources = ARRAY['project:' || @project] WHERE id = @key"},
		good: []string{"name = 'x' WHERE id = @new", "revoked_at = now() WHERE id = @new"},
	},
	{rule: "api_keys_metadata_check", hub: true, sql: "UPDATE api_keys SET metadata = ?? WHERE id = @key", bad: notMetadata, good: metadata},
	{
		rule: "api_keys_identity_immutable", hub: true, sql: "UPDATE api_keys SET ?? WHERE id = @key",
		bad:  []string{"id = @new", "account_id = @owner", "org_id = @other_org", "key_hash = sha256('x')", "created_at = created_at - interval '1 hour'"},
		good: []string{"name = 'x', enabled = false", "account_id = @member"},
	},

	// S05: whatever is wrong with a key, the answer is the same.
	{rule: "unauthenticated", state: "28000", sql: "SELECT authenticate(sha256(??), '{}', 'member', NULL)", bad: []string{"''", "'no key'"}, good: []string{"'key'", "'other key'"}},
	{rule: "unauthenticated", hub: true, state: "28000", sql: "UPDATE api_keys SET ?? WHERE id = @key; SELECT authenticate(sha256('key'), '{}', 'member', NULL)", bad: []string{
		"enabled = false", "revoked_at = now()", "revoked_at = now() + interval '1 hour'", "expires_at = now()",
	}, good: []string{"enabled = true", "expires_at = now() + interval '1 hour'"}},
	{rule: "unauthenticated", hub: true, state: "28000", sql: "UPDATE accounts SET status = ?? WHERE id = @member; SELECT authenticate(sha256('key'), '{}', 'member', NULL)", bad: []string{"'suspended'", "'deactivated'"}, good: []string{"'active'"}},
	{rule: "unauthenticated", hub: true, state: "28000", sql: "UPDATE organizations SET deleted_at = ?? WHERE id = @org; SELECT authenticate(sha256('key'), '{}', 'member', NULL)", bad: []string{"now()"}, good: []string{"NULL"}},

	{
		rule: "insufficient_scope", state: "42501", sql: "SELECT authenticate(sha256('key'), ??, 'member', NULL)",
		bad:  []string{"'{sessions:read}'", "'{projects:read,sessions:read}'", "'{projects:admin}'", "'{*}'", "'{platform:*}'"},
		good: []string{"'{}'", "'{projects:read}'", "'{projects:read,projects:write}'"},
	},
	// X01: * means the scopes of the organisation. platform:* is for admin accounts' keys alone.
	{rule: "insufficient_scope", state: "42501", sql: "SELECT authenticate(sha256('other key'), ??, 'member', NULL)", bad: []string{"'{platform:accounts}'", "'{projects:read,platform:*}'"}, good: []string{"'{projects:read,anything:admin}'", "'{*}'"}},
	{
		rule: "insufficient_scope", hub: true, state: "42501", before: platformKey, sql: "SELECT authenticate(sha256('key'), ??, 'member', NULL)",
		bad: []string{"'{*}'", "'{projects:read}'", "'{platform:*,projects:read}'"}, good: []string{"'{}'", "'{platform:*}'", "'{platform:accounts}'"},
	},
	{
		rule: "insufficient_scope", hub: true, state: "42501", before: platformKey,
		sql: "UPDATE accounts SET access_level = ?? WHERE id = @member; SELECT authenticate(sha256('key'), '{platform:*}', 'member', NULL)", bad: []string{"'member'"}, good: []string{"'admin'"},
	},
	{rule: "insufficient_scope", state: "42501", sql: "SELECT set_config('hub.platform', ??, true); SELECT create_organization('new', 'New', NULL, '{}', '{}', hub_uuidv7(), sha256('new'))", bad: []string{"''", "'off'"}, good: []string{"'on'"}},
	{rule: "audit_platform_for_admins", state: "42501", sql: "SELECT set_config('hub.platform', ??, true); SELECT audit_chain_of(true)", bad: []string{"''", "'off'"}, good: []string{"'on'"}},
	{rule: "audit_platform_for_admins", state: "42501", sql: "SELECT audit_chain_of(??)", bad: []string{"true"}, good: []string{"false"}},

	{rule: "insufficient_level", state: "42501", sql: "SELECT authenticate(sha256('key'), '{}', ??, NULL)", bad: append([]string{"'admin'", "'owner'"}, tooFar...), good: []string{"'member'"}},
	{rule: "insufficient_level", hub: true, state: "42501", before: "UPDATE organization_members SET membership_level = 'admin' WHERE account_id = @member", sql: "SELECT authenticate(sha256('key'), '{}', ??, NULL)", bad: []string{"'owner'"}, good: []string{"'member'", "'admin'"}},
	{
		// A platform admin ranks above every level.
		rule: "insufficient_level", hub: true, state: "42501", before: platformKey, sql: "UPDATE accounts SET access_level = ?? WHERE id = @member; SELECT authenticate(sha256('key'), '{}', 'owner', NULL)",
		bad: []string{"'member'"}, good: []string{"'admin'"},
	},

	{rule: "acting_session_not_found", state: "23503", sql: "SELECT authenticate(sha256('key'), '{}', 'member', ??)", bad: []string{"@new", "@other_session"}, good: []string{"@session", "@child", "NULL"}},
	{
		rule: "acting_session_not_found", hub: true, state: "23503", sql: "UPDATE api_keys SET resources = ARRAY['project:' || ??] WHERE id = @key; SELECT authenticate(sha256('key'), '{}', 'member', @session)",
		bad: []string{"@empty_project"}, good: []string{"@project"},
	},
}

const platformKey = "UPDATE accounts SET access_level = 'admin' WHERE id = @member; UPDATE api_keys SET scopes = '{platform:*}' WHERE id = @key"

var identityDeletes = []deleteCase{
	{
		fk: "organization_members_org_id_fkey", before: "DELETE FROM calls; DELETE FROM spokes; DELETE FROM sessions; DELETE FROM clients; DELETE FROM tasks; DELETE FROM projects; DELETE FROM roles",
		delete: "DELETE FROM organizations WHERE id = @org", gone: "SELECT NOT EXISTS (SELECT FROM organization_members WHERE org_id = @org)",
	},
	{fk: "organization_members_account_id_fkey", delete: "DELETE FROM accounts WHERE id = @member", gone: "SELECT NOT EXISTS (SELECT FROM organization_members WHERE account_id = @member)"},
	{fk: "api_keys_member_fkey", delete: "DELETE FROM organization_members WHERE account_id = @member", gone: "SELECT NOT EXISTS (SELECT FROM api_keys WHERE id = @key)"},
	{fk: "api_keys_member_fkey", delete: "DELETE FROM accounts WHERE id = @member", gone: "SELECT NOT EXISTS (SELECT FROM api_keys WHERE id = @key)"},
	{
		fk: "api_keys_rotated_to_id_fkey", before: "UPDATE api_keys SET rotated_to_id = @owner_key, revoked_at = now() WHERE id = @key", delete: "DELETE FROM api_keys WHERE id = @owner_key",
		gone: "SELECT rotated_to_id IS NULL AND revoked_at IS NOT NULL FROM api_keys WHERE id = @key",
	},
	{
		fk: "accounts_home_org_id_fkey", before: "DELETE FROM calls; DELETE FROM spokes; DELETE FROM sessions; DELETE FROM clients; DELETE FROM tasks; DELETE FROM projects; DELETE FROM roles",
		delete: "DELETE FROM organizations WHERE id = @org", gone: "SELECT home_org_id IS NULL FROM accounts WHERE id = @member",
	},
}

func TestX02_IdentityRules(t *testing.T) {
	t.Parallel()
	checkRules(t, identityRules)
}

func TestC14_IdentityDeletes(t *testing.T) {
	t.Parallel()
	checkDeletes(t, identityDeletes)
}

func TestC13_OwnershipIsTransferredInOneTransaction(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const demote = "UPDATE organization_members SET membership_level = 'member' WHERE account_id = @owner;"
	const transfer = "UPDATE organizations SET owner_id = @co_owner WHERE id = @org;"
	if _, err := attempt(t, w.hub, "", transfer+demote); err != nil {
		t.Error(err)
	}
	_, err := attempt(t, w.hub, "", demote+transfer)
	refuses(t, err, "23503", "organizations_owner_is_member_fkey")
	if _, err := attempt(t, w.hub, "SET CONSTRAINTS ALL DEFERRED", demote+transfer); err != nil {
		t.Error(err)
	}
	_, err = attempt(t, w.hub, "SET CONSTRAINTS ALL DEFERRED", demote)
	refuses(t, err, "23503", "organizations_owner_is_member_fkey")
}

func TestC01_TheSystemAccountIsSeeded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if got := get[string](t, w.hub, "SELECT kind || ' ' || access_level || ' ' || status FROM accounts WHERE id = @system"); got != "system admin active" {
		t.Error(got)
	}
}

func TestX01_AuthenticationSetsTheTenantForOneTransaction(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	conn := connect(t, w.url)
	const who = `SELECT format('%s|%s|%s|%s|%s|%s|%s|%s|%s', current_org_id(), current_account_id(), current_key_id(), array_to_string(current_key_scopes(), ' '),
		array_to_string(current_project_ids(), ' '), current_membership_rank(), is_platform_admin(), current_session_id(), current_setting('hub.actor_source', true))`
	exec(t, w.hub, `
		UPDATE accounts SET access_level = 'admin' WHERE id IN (@admin, @co_owner);
		INSERT INTO api_keys (org_id, account_id, name, key_hash, scopes, resources) VALUES
			(@org, @admin, 'x', sha256('platform'), '{*,platform:*}', '{}'), (@org, @admin, 'x', sha256('admin'), '{*}', '{}'),
			(@org, @co_owner, 'x', sha256('limited'), '{*,platform:*}', ARRAY['project:' || @project, 'project:' || @empty_project]),
			(@org, @owner, 'x', sha256('was admin'), '{*}', '{}')`)
	org, member := ids["org"], ids["org"]+"|"+ids["member"]+"|"+ids["key"]
	for _, c := range []struct{ key, session, want string }{
		{"key", "NULL", member + "|projects:read projects:write||1|f||api"},
		{"key", "@session", member + "|projects:read projects:write||1|f|" + ids["session"] + "|api"},
		{"owner key", "NULL", org + "|" + ids["owner"] + "|" + ids["owner_key"] + "|*||3|f||api"},
		{"admin", "NULL", org + "|" + ids["admin"] + "||*||2|f||api"},
		{"platform", "NULL", org + "|" + ids["admin"] + "||* platform:*||2|t||api"},
		// A limited key is a member's, whoever holds it, and no platform admin's.
		{"limited", "NULL", org + "|" + ids["co_owner"] + "||*|" + ids["project"] + " " + ids["empty_project"] + "|1|f||api"},
		{"other key", "NULL", ids["other_org"] + "|" + ids["other_owner"] + "|" + ids["other_key"] + "|*||3|f||api"},
	} {
		exec(t, conn, "BEGIN; SELECT authenticate(sha256('"+c.key+"'), '{}', 'member', "+c.session+")")
		fields := strings.Split(get[string](t, conn, who), "|")
		if want := strings.Split(c.want, "|"); want[2] == "" {
			fields[2] = "" // a key with an id of its own
		}
		if got := strings.Join(fields, "|"); got != c.want {
			t.Errorf("%s: %q, want %q", c.key, got, c.want)
		}
		want := []string{"one"}
		switch c.key {
		case "platform": // the rows of all organisations, not what lies under them
			want = []string{"one", "other"}
		case "other key":
			want = []string{"other"}
		}
		if got := list[string](t, conn, "SELECT slug FROM organizations ORDER BY slug"); !slices.Equal(got, want) {
			t.Errorf("%s: %v", c.key, got)
		}
		exec(t, conn, "COMMIT")
		if got := get[string](t, conn, who); got != "|||||0|f||" {
			t.Errorf("%s: %q after the transaction", c.key, got)
		}
		if got := list[string](t, conn, "SELECT slug FROM organizations"); len(got) != 0 {
			t.Error(got)
		}
	}
}

// Whatever is wrong with a key, the answer is the same, and once it is right again it works.
func TestS05_EveryFailureIsTheSame(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const use = "SELECT authenticate(sha256('key'), '{projects:read}', 'member', NULL)"
	messages := map[string]string{}
	for what, before := range map[string]string{
		"unknown": "DELETE FROM api_keys WHERE id = @key", "disabled": "UPDATE api_keys SET enabled = false WHERE id = @key", "revoked": "UPDATE api_keys SET revoked_at = now() WHERE id = @key",
		"expired": "UPDATE api_keys SET expires_at = now() WHERE id = @key", "suspended": "UPDATE accounts SET status = 'suspended' WHERE id = @member",
		"deactivated": "UPDATE accounts SET status = 'deactivated' WHERE id = @member", "organisation deleted": "UPDATE organizations SET deleted_at = now() WHERE id = @org",
		"no member": "DELETE FROM organization_members WHERE account_id = @member",
	} {
		_, err := attempt(t, w.hub, before, use)
		refuses(t, err, "28000", "unauthenticated")
		messages[spell(err)] += " " + what
	}
	if len(messages) != 1 {
		t.Errorf("they can be told apart: %v", messages)
	}
	// On the very next statement, of another connection: nothing is kept.
	other := connect(t, w.url)
	exec(t, other, use)
	exec(t, w.app, "UPDATE api_keys SET revoked_at = now() WHERE id = @key")
	_, err := attempt(t, other, "", use)
	refuses(t, err, "28000", "unauthenticated")
}

func TestX06_AccountStatusesFollowTheTransitions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	legal := map[string]string{"active": "suspended deactivated", "suspended": "active deactivated", "deactivated": "active"}
	for from := range legal {
		for to := range legal {
			want := slices.Contains(strings.Fields(legal[from]), to)
			if listed := get[bool](t, w.app, fmt.Sprintf("SELECT EXISTS (SELECT FROM account_status_transitions WHERE from_status = '%s' AND to_status = '%s')", from, to)); listed != want {
				t.Errorf("%s to %s: %v in the table", from, to, listed)
			}
			_, err := attempt(t, w.app, as("owner", "platform", "'on'")+"UPDATE accounts SET status = '"+from+"' WHERE id = @member", "UPDATE accounts SET status = '"+to+"' WHERE id = @member")
			if want || from == to {
				if err != nil {
					t.Errorf("%s to %s: %v", from, to, err)
				}
			} else {
				refuses(t, err, "23514", "accounts_status_transition")
			}
		}
	}
}

// A suspended account's keys stop and come back; a deactivated one's are revoked in all organisations, for good.
func TestW02_SuspensionPassesAndDeactivationDoesNot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, `
		INSERT INTO organization_members (org_id, account_id) VALUES (@other_org, @member);
		INSERT INTO api_keys (org_id, account_id, name, key_hash, revoked_at) VALUES
			(@org, @member, 'x', sha256('second key'), NULL), (@other_org, @member, 'x', sha256('key elsewhere'), NULL), (@other_org, @member, 'x', sha256('old key'), now() - interval '1 day')`)
	works := func(what string, want bool) {
		t.Helper()
		for _, key := range []string{"key", "second key", "key elsewhere"} {
			if _, err := attempt(t, w.app, "", "SELECT authenticate(sha256('"+key+"'), '{}', 'member', NULL)"); want != (err == nil) {
				t.Errorf("%s: %s: %s", what, key, spell(err))
			} else if !want {
				refuses(t, err, "28000", "unauthenticated")
			}
		}
	}
	set := func(status string) {
		t.Helper()
		// By a platform admin of another organisation.
		if tag := exec(t, w.app, "BEGIN;"+acting("other_org", "other_owner", true, "platform", "'on'")+"UPDATE accounts SET status = '"+status+"' WHERE id = @member; COMMIT"); tag.String() != "COMMIT" {
			t.Fatal(tag)
		}
	}
	works("active", true)
	set("suspended")
	works("suspended", false)
	set("active")
	works("active again", true)
	const revoked = "SELECT count(*) FILTER (WHERE revoked_at IS NOT NULL) || ' of ' || count(*) || ', ' || count(*) FILTER (WHERE revoked_at < now() - interval '1 hour') || ' before' FROM api_keys WHERE account_id = @member"
	if got := get[string](t, w.hub, revoked); got != "1 of 4, 1 before" {
		t.Errorf("revoked after the suspension: %s", got)
	}
	set("suspended")
	set("deactivated")
	if got := get[string](t, w.hub, revoked); got != "4 of 4, 1 before" {
		t.Errorf("revoked by the deactivation: %s", got)
	}
	set("active")
	works("after the deactivation", false)
	if got := get[int](t, w.hub, "SELECT count(*) FROM api_keys WHERE revoked_at IS NULL"); got != 2 {
		t.Errorf("%d keys of others are left, want 2", got)
	}
	_, err := attempt(t, w.app, "", "UPDATE api_keys SET revoked_at = NULL WHERE id = @key")
	refuses(t, err, "23514", "api_keys_revoked_for_good")
	// The person is back, and gets a new key.
	exec(t, w.app, "INSERT INTO api_keys (org_id, account_id, name, key_hash) VALUES (@org, @member, 'x', sha256('new key'))")
	exec(t, w.app, "SELECT authenticate(sha256('new key'), '{}', 'member', NULL)")

	// A platform admin's key need hold nothing that it revokes.
	if _, err := attempt(t, w.app, as("owner", "platform", "'on'", "key_scopes", "'platform:*'"), "UPDATE accounts SET status = 'deactivated' WHERE id = @member"); err != nil {
		t.Error(spell(err))
	}
	// The break-glass: `hub admin deactivate`.
	if got := get[[]string](t, w.hub, "SELECT admin_set_account_status(@owner, 'deactivated')"); !slices.Equal(got, []string{"one"}) {
		t.Errorf("organisations that want another owner: %v", got)
	}
	if got := get[bool](t, w.hub, "SELECT bool_and(revoked_at IS NOT NULL) FROM api_keys WHERE account_id = @owner"); !got {
		t.Error("the owner's keys are not revoked")
	}
	if got := get[[]string](t, w.hub, "SELECT admin_set_account_status(@new, 'deactivated')"); got != nil {
		t.Errorf("nobody's: %v", got)
	}
}

func TestW16_OwnershipIsTransferred(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const transfer = "SELECT transfer_organization(@org, %s)"
	const owners = "SELECT (SELECT slug FROM organizations WHERE owner_id = @member) || ' ' || string_agg(account_id || ' ' || membership_level, ' ' ORDER BY account_id) FROM organization_members WHERE org_id = @org AND account_id IN (@owner, @member)"
	for _, c := range []struct {
		who, settings string
		rule          string // that refuses; "-" where there is no such organisation for the caller
	}{
		{"its owner", as("owner"), ""},
		{"another owner", as("co_owner"), "organizations_transferred_by_owner"},
		{"an admin", as("admin"), "organization_members_level_granted"},
		{"a member", as("member"), "organization_members_level_granted"},
		{"a platform admin who is a member", as("member", "platform", "'on'"), ""},
		{"a platform admin from elsewhere", acting("other_org", "other_owner", true, "platform", "'on'"), ""},
		{"another organisation's owner", acting("other_org", "other_owner", true), "-"},
		{"its owner, from elsewhere", acting("other_org", "owner", true), "-"},
	} {
		exec(t, w.app, "BEGIN;"+c.settings)
		tag, err := run(t.Context(), w.app, fmt.Sprintf(transfer, "@member"))
		switch c.rule {
		case "":
			if err != nil || tag.RowsAffected() != 1 {
				t.Errorf("%s: %s %v", c.who, tag, err)
			}
		case "-":
			if err != nil || tag.RowsAffected() != 0 {
				t.Errorf("%s: %s %v", c.who, tag, err)
			}
		default:
			refuses(t, err, "42501", c.rule)
		}
		exec(t, w.app, "ROLLBACK")
	}
	exec(t, w.app, fmt.Sprintf(transfer, "@member"))
	if got, want := get[string](t, w.hub, owners), "one "+ids["owner"]+" owner "+ids["member"]+" owner"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	// Now the old owner can go, and could not before.
	exec(t, w.app, "DELETE FROM organization_members WHERE account_id = @owner")
	_, err := attempt(t, w.app, as("member"), "DELETE FROM organization_members WHERE account_id = @member")
	refuses(t, err, "23503", "organizations_owner_is_member_fkey")
	_, err = attempt(t, w.app, "", "UPDATE organizations SET owner_id = @co_owner")
	refuses(t, err, "42501", "") // not by itself
}

func TestX01_AccountsAreVisibleToThemselvesAndTheirOrganisation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const names = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM accounts"
	for _, c := range []struct{ org, account, want string }{
		{"org", "owner", ids["owner"] + " " + ids["co_owner"] + " " + ids["member"] + " " + ids["admin"]},
		{"org", "member", ids["owner"] + " " + ids["co_owner"] + " " + ids["member"] + " " + ids["admin"]},
		{"other_org", "other_owner", ids["other_owner"]},
		{"other_org", "owner", ids["owner"] + " " + ids["other_owner"]},
		{"new", "nobody", ids["nobody"]},
	} {
		if got := get[string](t, w.connect(t, c.org, c.account), names); got != c.want {
			t.Errorf("%s in %s sees %q, want %q", c.account, c.org, got, c.want)
		}
	}
	if got := get[*string](t, connect(t, w.url), names); got != nil {
		t.Errorf("nobody sees %q", *got)
	}
	exec(t, w.app, acting("other_org", "other_owner", false, "platform", "'on'"))
	if got := get[int](t, w.app, "SELECT count(*) FROM accounts"); got != 7 {
		t.Errorf("a platform admin sees %d accounts, want all", got)
	}
	// To its home organisation, though it works elsewhere.
	exec(t, w.hub, "DELETE FROM organization_members WHERE account_id = @member; INSERT INTO organization_members (org_id, account_id) VALUES (@other_org, @member)")
	for _, org := range []string{"org", "other_org"} {
		if got := get[int](t, w.connect(t, org, "other_owner"), "SELECT count(*) FROM accounts WHERE id = @member"); got != 1 {
			t.Errorf("@%s does not see @member", org)
		}
	}
}

func TestW13_KeyHashesAreNotReadable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, sql := range []string{"SELECT key_hash FROM api_keys", "SELECT * FROM api_keys", "SELECT k FROM api_keys k", "SELECT FROM api_keys WHERE key_hash = sha256('key')", "UPDATE api_keys SET name = encode(key_hash, 'hex')", "UPDATE api_keys SET name = name RETURNING key_hash"} {
		_, err := attempt(t, w.app, "", sql)
		refuses(t, err, "42501", "")
	}
	if tag, err := attempt(t, w.app, "", "SELECT name FROM api_keys"); err != nil || tag.RowsAffected() != 2 {
		t.Error(tag, err)
	}
	// A member sees its own keys, a platform admin all of the organisation's.
	if tag, err := attempt(t, w.app, as("member", "platform", "'on'"), "SELECT name FROM api_keys"); err != nil || tag.RowsAffected() != 2 {
		t.Error(tag, err)
	}
	if tag, err := attempt(t, w.app, as("member"), "SELECT name FROM api_keys"); err != nil || tag.RowsAffected() != 1 {
		t.Error(tag, err)
	}
}

// What privileges and policies let a request do to the control plane: what rules then refuse is tested with the rules.
func TestX01_TheControlPlaneIsReadOnlyToRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	allowed := map[string][]string{
		"accounts": {
			"INSERT INTO accounts (id, kind, access_level, home_org_id, display_name, email, data, metadata) VALUES (@new, 'human', 'member', @org, 'x', 'x@one', '{}', '{}')",
			"UPDATE accounts SET status = status, access_level = access_level, display_name = 'x', email = NULL, data = '{}', metadata = '{}' WHERE id = @member",
		},
		"organizations":        {`UPDATE organizations SET slug = 'x', name = 'x', deleted_at = now(), data = '{}', metadata = '{}' WHERE id = @org`},
		"organization_members": {"INSERT INTO organization_members (org_id, account_id, membership_level, metadata) VALUES (@org, @nobody, 'admin', '{}')", "UPDATE organization_members SET membership_level = 'admin', metadata = '{}' WHERE account_id = @member", "DELETE FROM organization_members WHERE account_id = @member"},
		"api_keys": {
			"INSERT INTO api_keys (org_id, id, account_id, name, key_hash, scopes, resources, tags, expires_at, metadata) VALUES (@org, @new, @member, 'x', sha256('x'), '{}', '{}', '{}', NULL, '{}')",
			"UPDATE api_keys SET name = 'x', scopes = '{}', resources = '{}', tags = '{}', enabled = false, expires_at = NULL, revoked_at = now(), rotated_to_id = @owner_key, metadata = '{}' WHERE id = @key",
		},
		"retention_policies": {"UPDATE retention_policies SET audit_days = 7, metadata = '{}'"},
	}
	refused := map[string][]string{
		"accounts":             {"UPDATE accounts SET home_org_id = NULL", "UPDATE accounts SET kind = 'llm'", "UPDATE accounts SET id = id", "INSERT INTO accounts (kind, display_name, home_org_id, status) VALUES ('human', 'x', @org, 'active')", "UPDATE accounts SET updated_at = now()", "UPDATE accounts SET revision = 1"},
		"organizations":        {"INSERT INTO organizations (slug, name, owner_id) VALUES ('x', 'x', @owner)", "UPDATE organizations SET owner_id = @owner", "UPDATE organizations SET id = id", "DELETE FROM organizations", "UPDATE organizations SET revision = 1"},
		"organization_members": {"UPDATE organization_members SET org_id = org_id", "UPDATE organization_members SET account_id = @nobody", "UPDATE organization_members SET created_at = now()"},
		"api_keys":             {"DELETE FROM api_keys", "UPDATE api_keys SET account_id = @owner", "UPDATE api_keys SET key_hash = sha256('x')", "UPDATE api_keys SET last_used_at = now()", "UPDATE api_keys SET org_id = org_id", "INSERT INTO api_keys (org_id, account_id, name, key_hash, revoked_at) VALUES (@org, @owner, 'x', sha256('x'), NULL)"},
		"retention_policies":   {"INSERT INTO retention_policies (org_id) VALUES (@org)", "DELETE FROM retention_policies", "UPDATE retention_policies SET org_id = org_id"},
		"audit_chains":         {"INSERT INTO audit_chains (chain_id) VALUES (@new)", "UPDATE audit_chains SET position = 0", "DELETE FROM audit_chains", "SELECT FROM audit_chains FOR UPDATE"},
		"audit_logs":           {"INSERT INTO audit_logs SELECT * FROM audit_logs", "UPDATE audit_logs SET action = 'x.y'", "DELETE FROM audit_logs", "SELECT FROM audit_logs FOR UPDATE"},
	}
	for _, table := range []string{"reserved_email_domains", "account_status_transitions"} {
		refused[table] = []string{"INSERT INTO " + table + " DEFAULT VALUES", "UPDATE " + table + " SET created_at = now()", "DELETE FROM " + table}
	}
	for table, statements := range refused {
		for _, sql := range append(statements, "TRUNCATE "+table+" CASCADE") {
			_, err := attempt(t, w.app, "", sql)
			refuses(t, err, "42501", "")
		}
		if tag, err := attempt(t, w.app, "", "SELECT created_at FROM "+table); err != nil || tag.RowsAffected() == 0 {
			t.Error(table, tag, err)
		}
		for _, sql := range allowed[table] {
			if tag, err := attempt(t, w.app, "", sql); err != nil || tag.RowsAffected() != 1 {
				t.Errorf("%s: %s %v", sql, tag, err)
			}
		}
	}
	// The functions that work across organisations are not for requests.
	for _, call := range []string{
		"bootstrap_hub('x', 'x', 'x', sha256('x'))", "admin_list_accounts()", "admin_create_account('one', 'x', NULL, sha256('x'))", "admin_issue_key(@owner, 'one', sha256('x'))", "admin_set_account_status(@member, 'suspended')",
		"make_organization('x', 'x', @owner, '{}', '{}', @new, 'x', sha256('x'), '{*}')", "append_audit(@org, 'x.y', 'x', NULL, '{}')",
	} {
		_, err := attempt(t, w.app, as("owner", "platform", "'on'"), "SELECT "+call)
		refuses(t, err, "42501", "")
	}
}

func TestX01_OnlyPlatformAdminsMakeOrganisations(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const create = "SELECT slug || ' ' || (owner_id = %s)::text FROM create_organization('new', 'New', %s, '{}', '{}', @new, sha256('new key'))"
	for _, owner := range []struct{ given, is string }{{"NULL", "@owner"}, {"@nobody", "@nobody"}, {"@other_owner", "@other_owner"}} {
		exec(t, w.app, "BEGIN;"+as("owner", "platform", "'on'", "key_scopes", "'platform:*'"))
		if got := get[string](t, w.app, fmt.Sprintf(create, owner.is, owner.given)); got != "new true" {
			t.Errorf("for %s: %s", owner.given, got)
		}
		// Its first key gets its owner in, and nobody anywhere else.
		if got := get[string](t, w.app, "SELECT (org_id <> @org)::text || ' ' || (account_id = "+owner.is+")::text || ' ' || (key_id = @new)::text FROM authenticate(sha256('new key'), '{projects:admin}', 'owner', NULL)"); got != "true true true" {
			t.Error(got)
		}
		exec(t, w.app, "SET CONSTRAINTS ALL IMMEDIATE; ROLLBACK")
	}
	_, err := attempt(t, w.app, as("owner", "platform", "'on'"), fmt.Sprintf(create, "@system", "@system"))
	refuses(t, err, "23514", "organization_members_not_system_check")
	_, err = attempt(t, w.app, as("owner", "platform", "'on'"), strings.Replace(fmt.Sprintf(create, "@owner", "NULL"), "'new'", "'other'", 1))
	refuses(t, err, "23505", "organizations_slug_key")
}

// Rotation: the old key lives on for the grace period, never longer than it would have anyway.
func TestX01_RotationOverlaps(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rotate := queryNamed(t, "RotateAPIKey")
	rotate.prepare(t, w.app)
	rotating := func(made, grace string) string {
		return rotate.execute(t, "id", "@key", "made_id", made, "key_hash", "sha256('"+made[1:]+"')", "expires_at", "NULL", "grace_seconds", grace)
	}
	const lives = "SELECT coalesce(extract(epoch FROM expires_at - now())::bigint::text, '-') || ' ' || coalesce(rotated_to_id::text, '-') || ' ' || array_to_string(scopes, ' ') FROM api_keys WHERE id = "
	for _, c := range []struct{ before, grace, old, new string }{
		{"", "3600", "3600", "-"},
		{"UPDATE api_keys SET expires_at = now() + interval '60 seconds' WHERE id = @key", "3600", "60", "60"},
		{"UPDATE api_keys SET expires_at = now() + interval '2 hours' WHERE id = @key", "3600", "3600", "7200"},
		{"", "0", "0", "-"},
	} {
		exec(t, w.app, "BEGIN;"+c.before)
		if tag := exec(t, w.app, rotating("@new", c.grace)); tag.RowsAffected() != 2 {
			t.Errorf("%+v: %s", c, tag)
		}
		// How long each lives: a key that lives as long again does so from now on, which is a little more than is left of its predecessor's life.
		old, made := strings.Fields(get[string](t, w.app, lives+"@key")), strings.Fields(get[string](t, w.app, lives+"@new"))
		if old[0] != c.old || old[1] != ids["new"] || made[0] != c.new && !near(made[0], c.new) || made[1] != "-" || !slices.Equal(old[2:], made[2:]) || len(made) != 4 {
			t.Errorf("%+v: %v, then %v", c, old, made)
		}
		for _, key := range []string{"key", "new"} {
			_, err := attemptWithin(t, w.app, "SELECT authenticate(sha256('"+key+"'), '{projects:read}', 'member', NULL)")
			if works := key != "key" || c.grace != "0"; works != (err == nil) {
				t.Errorf("%+v: %s: %s", c, key, spell(err))
			}
		}
		exec(t, w.app, "ROLLBACK")
	}
	// Twice is once too often, and a revoked key has no successor.
	_, err := attempt(t, w.app, rotating("@new", "60"), rotating("@high", "60"))
	refuses(t, err, "23514", "api_keys_rotated_once")
	_, err = attempt(t, w.app, "UPDATE api_keys SET revoked_at = now() WHERE id = @key", rotating("@new", "60"))
	refuses(t, err, "23514", "api_keys_revoked_for_good")
}

// attemptWithin is attempt in a transaction that has begun.
func attemptWithin(t testing.TB, conn *pgx.Conn, sql string) (pgconn.CommandTag, error) {
	t.Helper()
	exec(t, conn, "SAVEPOINT attempt")
	tag, err := run(t.Context(), conn, sql)
	exec(t, conn, "ROLLBACK TO attempt")
	return tag, err
}

// Uses are written down in batches, at most once a minute, and are neither a revision nor audited.
func TestX01_KeyUsesAreNoted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const record = "SELECT record_key_uses(ARRAY[@org, @other_org, @org]::uuid[], ARRAY[@key, @other_key, @other_key]::uuid[], ARRAY[%s, now(), now()]::timestamptz[])"
	const state = "SELECT coalesce(extract(epoch FROM now() - last_used_at)::bigint::text, '-') || ' ' || revision FROM api_keys WHERE id = "
	nobody := connect(t, w.url)
	entries := get[int](t, w.hub, "SELECT count(*) FROM audit_logs")
	for _, c := range []struct{ at, want string }{
		{"now() - interval '10 minutes'", "600 1"},
		{"now() - interval '570 seconds'", "600 1"}, // within a minute
		{"now() - interval '1 hour'", "600 1"},      // a replica that comes late
		{"now() - interval '5 minutes'", "300 1"},
	} {
		exec(t, nobody, fmt.Sprintf(record, c.at))
		exec(t, w.hub, "BEGIN") // now() stands still
		got := strings.Fields(get[string](t, w.hub, state+"@key"))
		exec(t, w.hub, "COMMIT")
		want := strings.Fields(c.want)
		if len(got) != 2 || got[1] != want[1] || !near(got[0], want[0]) {
			t.Errorf("%s: %v, want %v", c.at, got, want)
		}
	}
	if got := get[string](t, w.hub, "SELECT count(*) FILTER (WHERE last_used_at IS NOT NULL) || ' ' || max(revision) FROM api_keys"); got != "2 1" {
		t.Errorf("used keys, highest revision: %s", got)
	}
	if got := get[int](t, w.hub, "SELECT count(*) FROM audit_logs"); got != entries {
		t.Errorf("%d audit entries more", got-entries)
	}
}

// near says whether two numbers of seconds differ by what a slow machine may take.
func near(a, b string) bool {
	x, errX := strconv.Atoi(a)
	y, errY := strconv.Atoi(b)
	return errX == nil && errY == nil && x-y >= 0 && x-y < 60
}

func TestX09_BootstrapHappensOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if !get[bool](t, w.app, "SELECT hub_is_bootstrapped()") {
		t.Error("there are organisations")
	}
	if got := get[*string](t, w.hub, "SELECT org_id::text FROM bootstrap_hub('new', 'New', 'admin', sha256('new'))"); got != nil {
		t.Errorf("bootstrapped again: %s", *got)
	}

	exec(t, w.hub, "DELETE FROM calls; DELETE FROM spokes; DELETE FROM sessions; DELETE FROM clients; DELETE FROM tasks; DELETE FROM projects; DELETE FROM roles; DELETE FROM organizations")
	if get[bool](t, w.app, "SELECT hub_is_bootstrapped()") {
		t.Error("there is no organisation")
	}
	var group sync.WaitGroup
	orgs := make([]*string, 8)
	for i := range orgs {
		conn := connect(t, w.url)
		exec(t, w.hub, "GRANT EXECUTE ON FUNCTION bootstrap_hub(text, text, text, bytea, text) TO hub_app")
		group.Go(func() {
			err := conn.QueryRow(t.Context(), "SELECT org_id::text FROM bootstrap_hub('default', 'Default', 'admin', sha256('first'))").Scan(&orgs[i])
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	made := 0
	for _, org := range orgs {
		if org != nil {
			made++
		}
	}
	if made != 1 {
		t.Errorf("%d replicas made the first organisation", made)
	}
	if got := get[string](t, w.app, "SELECT org_id || ' ' || account_id FROM authenticate(sha256('first'), '{projects:admin,platform:*}', 'owner', NULL)"); got == "" {
		t.Error("the first key does not work")
	}
}

// `hub admin`: what the operator does from the machine, where no key works any more.
func TestX01_TheOperatorsWayIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if got := list[string](t, w.hub, "SELECT concat_ws(' ', org_slug, kind, display_name, access_level, status, email, membership_level) FROM admin_list_accounts()"); !slices.Equal(got, []string{
		"one human admin member active admin@one admin", "one human co-owner member active co-owner@one owner", "one llm member member active member", "one human owner member active owner@one owner",
		"other human owner member active owner@other owner", "human nobody member active nobody@one",
	}) {
		t.Errorf("%q", got)
	}
	const signIn = "SELECT account_id::text FROM authenticate(sha256('%s'), '{%s}', 'owner', NULL)"
	made := get[string](t, w.hub, "SELECT admin_create_account('one', 'Root', 'root@one', sha256('root'))::text")
	if got := get[string](t, w.app, fmt.Sprintf(signIn, "root", "platform:*,projects:admin")); got != made {
		t.Errorf("%s, want %s", got, made)
	}
	if got := get[*string](t, w.hub, "SELECT admin_create_account('none', 'Root', NULL, sha256('x'))::text"); got != nil {
		t.Error(*got)
	}
	// A new key for somebody who lost theirs: in the organisation where they have most to say.
	exec(t, w.hub, "INSERT INTO organization_members (org_id, account_id) VALUES (@other_org, @owner)")
	for _, c := range []struct{ slug, org string }{{"NULL", "org"}, {"'other'", "other_org"}, {"'one'", "org"}} {
		exec(t, w.hub, "BEGIN; SELECT admin_issue_key(@owner, "+c.slug+", sha256('lost'))")
		if got := get[string](t, w.hub, "SELECT org_id || ' ' || account_id FROM authenticate(sha256('lost'), '{projects:admin}', 'member', NULL)"); got != ids[c.org]+" "+ids["owner"] {
			t.Errorf("%s: %s", c.slug, got)
		}
		_, err := attemptWithin(t, w.hub, "SELECT authenticate(sha256('lost'), '{platform:*}', 'member', NULL)") // no platform admin
		refuses(t, err, "42501", "insufficient_scope")
		exec(t, w.hub, "ROLLBACK")
	}
	for _, nowhere := range []string{"@nobody, NULL", "@owner, 'none'", "@new, NULL", "@member, 'other'"} {
		if got := get[*string](t, w.hub, "SELECT admin_issue_key("+nowhere+", sha256('x'))::text"); got != nil {
			t.Errorf("%s: %s", nowhere, *got)
		}
	}
}

// Searching (S04) ------------------------------------------------------------------------------------------------------

func TestS04_SearchingAccounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, `
		WITH a AS (
			INSERT INTO accounts (kind, display_name) SELECT 'human', unnest('{John Smith,Jonathan Smythe,Mary Johnson,Ann_Lee,AnnXLee,100% Ann,Back\\slash,Ærøskøbing}'::text[]) RETURNING id
		) INSERT INTO organization_members (org_id, account_id) SELECT @org, id FROM a;
		WITH a AS (INSERT INTO accounts (kind, display_name) VALUES ('human', 'John Smith of the others') RETURNING id)
		INSERT INTO organization_members (org_id, account_id) SELECT @other_org, id FROM a;
		INSERT INTO accounts (kind, display_name, home_org_id) VALUES ('human', 'John Smith who left', @org)`)
	find := func(conn *pgx.Conn, text string, limit int) []string {
		t.Helper()
		rows, err := conn.Query(t.Context(), "SELECT display_name FROM search_accounts($1, $2)", text, limit)
		if err != nil {
			t.Fatal(err)
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		return names
	}
	for _, c := range []struct {
		text string
		want []string
	}{
		{"John Smith", []string{"John Smith"}},
		{"john smith", []string{"John Smith"}},
		{"jon smit", []string{"John Smith"}}, // typos
		{"mith", []string{"John Smith"}},     // within a word
		{"johnson", []string{"Mary Johnson"}},
		{"røsk", []string{"Ærøskøbing"}},
		{"n_L", []string{"Ann_Lee"}}, // what LIKE takes for any character is itself
		{"0%", []string{"100% Ann"}},
		{"%", []string{"100% Ann"}},
		{"_", []string{"Ann_Lee"}},
		{`\`, []string{`Back\slash`}},
		{`k\s`, []string{`Back\slash`}},
		{"zzz", nil},
	} {
		got := find(w.app, c.text, 10)
		if len(c.want) > 0 && (len(got) == 0 || got[0] != c.want[0]) || c.want == nil && len(got) > 0 || strings.ContainsAny(c.text, `%_\`) && !slices.Equal(got, c.want) {
			t.Errorf("%q finds %q, want %q", c.text, got, c.want)
		}
		for _, name := range got {
			if strings.Contains(name, "others") || strings.Contains(name, "left") {
				t.Errorf("%q finds %q, of another organisation or of none", c.text, name)
			}
		}
	}
	if got := find(w.app, "", 100); len(got) != 12 {
		t.Errorf("no text finds %q", got)
	}
	if got := find(w.app, "smith", 1); len(got) != 1 {
		t.Errorf("a limit of 1 finds %q", got)
	}
	if got := find(w.connect(t, "other_org", "other_owner"), "smith", 10); !slices.Equal(got, []string{"John Smith of the others"}) {
		t.Errorf("@other_org finds %q", got)
	}
	if got := find(connect(t, w.url), "smith", 10); len(got) != 0 {
		t.Errorf("nobody finds %q", got)
	}
	// A table of the caller's own is not searched instead.
	exec(t, w.app, "CREATE TEMPORARY TABLE organization_members AS SELECT @org::uuid AS org_id, id AS account_id FROM unnest(ARRAY[@other_owner]::uuid[]) id")
	if got := find(w.app, "smith", 10); len(got) == 0 || got[0] != "John Smith" {
		t.Errorf("with a temporary table: %q", got)
	}
}

// What PostgreSQL does inside of search_accounts, where row-level security does not keep it from the trigrams.
func TestS04_SearchUsesTheIndex(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, `
		SET session_replication_role = replica;
		WITH a AS (INSERT INTO accounts (kind, display_name) SELECT 'human', initcap(translate(md5(n::text), '0123456789', 'ghijklmnop')) FROM generate_series(1, 20000) n RETURNING id)
		INSERT INTO organization_members (org_id, account_id) SELECT CASE WHEN row_number() OVER () % 20 = 0 THEN @org::uuid ELSE @other_org END, id FROM a;
		ANALYZE accounts, organization_members`)
	plans := withPlans(t, w, acting("org", "owner", false))
	for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
		plan := plans("SET plan_cache_mode = " + mode + "; SELECT * FROM search_accounts('Abcdef', 20)")
		if !strings.Contains(plan, "accounts_display_name_idx") || strings.Contains(plan, "Seq Scan on accounts") {
			t.Errorf("%s:\n%s", mode, plan)
		}
	}
}
