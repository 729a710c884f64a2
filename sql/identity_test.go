package sql_test

import (
	"fmt"
	"sync"
	"testing"
)

const identityFixture = `
BEGIN;
SET CONSTRAINTS ALL DEFERRED;
INSERT INTO accounts (id, kind, display_name, email) VALUES
	(@owner, 'human', 'owner', 'owner@one'), (@co_owner, 'human', 'co-owner', 'co-owner@one'), (@member, 'llm', 'member', NULL),
	(@other_owner, 'human', 'owner', 'owner@other'), (@nobody, 'human', 'nobody', 'nobody@one');
INSERT INTO organizations (id, slug, name, owner_id) VALUES (@org, 'one', 'One', @owner), (@other_org, 'other', 'Other', @other_owner);
INSERT INTO organization_members (org_id, account_id, membership_level) VALUES
	(@org, @owner, 'owner'), (@org, @co_owner, 'owner'), (@org, @member, 'member'), (@other_org, @other_owner, 'owner');
INSERT INTO api_keys (org_id, id, account_id, name, key_hash, scopes) VALUES
	(@org, @key, @member, 'key', sha256('key'), '{projects:read,projects:write}'),
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
	{rule: "accounts_display_name_length_check", hub: true, sql: "UPDATE accounts SET display_name = ?? WHERE id = @member", bad: []string{"''", "repeat('ä', 201)"}, good: []string{"'x'", "repeat('ä', 200)"}},
	{
		rule: "accounts_email_shape_check", hub: true, sql: "UPDATE accounts SET email = ?? WHERE id = @member",
		bad:  []string{"''", "'a'", "'a@'", "'@b'", "'a b@c'", "'a@b c'", "'a@b@c'", "E'a@b\\n'", "'a@' || repeat('b', 253)"},
		good: []string{"'a@b'", "'A.b+c@d.example'", "'a@' || repeat('b', 252)", "NULL"},
	},
	{rule: "accounts_email_key", hub: true, sql: "UPDATE accounts SET email = ?? WHERE id = @member", bad: []string{"'owner@one'", "'Owner@ONE'"}, good: []string{"'owner@two'"}},
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
		rule: "api_keys_scopes_known_shape_check", hub: true, sql: "UPDATE api_keys SET scopes = ?? WHERE id = @key",
		bad: []string{
			"'{x}'", "'{projects}'", "'{projects:}'", "'{:read}'", "'{projects:delete}'", "'{Projects:read}'", "'{projects:*}'", "'{**}'", "'{NULL}'", "'{projects:read,NULL}'",
			`'{""}'`, `'{projects:read,""}'`, `'{"projects:read "}'`, `'{"projects:read sessions:read"}'`, `'{"projects:read\n"}'`, "'{platform:read}'",
		},
		good: []string{"'{}'", "'{*}'", "'{platform:*}'", "'{*,platform:*}'", "'{projects:read,sessions:write,keys:admin}'"},
	},
	{rule: "api_keys_metadata_check", hub: true, sql: "UPDATE api_keys SET metadata = ?? WHERE id = @key", bad: notMetadata, good: metadata},
	{
		rule: "api_keys_identity_immutable", hub: true, sql: "UPDATE api_keys SET ?? WHERE id = @key",
		bad:  []string{"id = @new", "account_id = @owner", "org_id = @other_org", "key_hash = sha256('x')", "created_at = created_at - interval '1 hour'"},
		good: []string{"name = 'x', enabled = false", "account_id = @member"},
	},

	// S05: whatever is wrong with a key, the answer is the same.
	{rule: "unauthenticated", state: "28000", sql: "SELECT authenticate(sha256(??), '{}')", bad: []string{"''", "'no key'"}, good: []string{"'key'", "'other key'"}},
	{rule: "unauthenticated", hub: true, state: "28000", sql: "UPDATE api_keys SET ?? WHERE id = @key; SELECT authenticate(sha256('key'), '{}')", bad: []string{
		"enabled = false", "revoked_at = now()", "revoked_at = now() + interval '1 hour'", "expires_at = now()",
	}, good: []string{"enabled = true", "expires_at = now() + interval '1 hour'"}},
	{rule: "unauthenticated", hub: true, state: "28000", sql: "UPDATE accounts SET status = ?? WHERE id = @member; SELECT authenticate(sha256('key'), '{}')", bad: []string{"'suspended'", "'deactivated'"}, good: []string{"'active'"}},
	{rule: "unauthenticated", hub: true, state: "28000", sql: "UPDATE organizations SET deleted_at = ?? WHERE id = @org; SELECT authenticate(sha256('key'), '{}')", bad: []string{"now()"}, good: []string{"NULL"}},

	{
		rule: "insufficient_scope", state: "42501", sql: "SELECT authenticate(sha256('key'), ??)",
		bad:  []string{"'{sessions:read}'", "'{projects:read,sessions:read}'", "'{projects:admin}'", "'{*}'", "'{platform:*}'"},
		good: []string{"'{}'", "'{projects:read}'", "'{projects:read,projects:write}'"},
	},
	// X01: * means the scopes of the organisation. platform:* is for admin accounts' keys alone.
	{rule: "insufficient_scope", state: "42501", sql: "SELECT authenticate(sha256('other key'), ??)", bad: []string{"'{platform:accounts}'", "'{projects:read,platform:*}'"}, good: []string{"'{projects:read,anything:admin}'", "'{*}'"}},
	{rule: "insufficient_scope", hub: true, state: "42501", sql: "UPDATE api_keys SET scopes = '{platform:*}' WHERE id = @key; SELECT authenticate(sha256('key'), ??)", bad: []string{"'{platform:*}'", "'{projects:read}'"}, good: []string{"'{}'"}},
	{
		rule: "insufficient_scope", hub: true, state: "42501", before: "UPDATE api_keys SET scopes = '{platform:*}' WHERE id = @key",
		sql: "UPDATE accounts SET access_level = ?? WHERE id = @member; SELECT authenticate(sha256('key'), '{platform:*}')", bad: []string{"'member'"}, good: []string{"'admin'"},
	},
}

var identityDeletes = []deleteCase{
	{
		fk: "organization_members_org_id_fkey", before: "DELETE FROM sessions; DELETE FROM clients; DELETE FROM projects; DELETE FROM roles",
		delete: "DELETE FROM organizations WHERE id = @org", gone: "SELECT NOT EXISTS (SELECT FROM organization_members WHERE org_id = @org)",
	},
	{fk: "organization_members_account_id_fkey", delete: "DELETE FROM accounts WHERE id = @member", gone: "SELECT NOT EXISTS (SELECT FROM organization_members WHERE account_id = @member)"},
	{fk: "api_keys_member_fkey", delete: "DELETE FROM organization_members WHERE account_id = @member", gone: "SELECT NOT EXISTS (SELECT FROM api_keys WHERE id = @key)"},
	{fk: "api_keys_member_fkey", delete: "DELETE FROM accounts WHERE id = @member", gone: "SELECT NOT EXISTS (SELECT FROM api_keys WHERE id = @key)"},
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
	const who = "SELECT concat_ws(' ', current_org_id(), current_account_id(), current_key_id())"
	exec(t, conn, "BEGIN; SELECT authenticate(sha256('key'), '{projects:read}')")
	if got, want := get[string](t, conn, who), ids["org"]+" "+ids["member"]+" "+ids["key"]; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := list[string](t, conn, "SELECT slug FROM organizations"); len(got) != 1 || got[0] != "one" {
		t.Error(got)
	}
	exec(t, conn, "COMMIT")
	if got := get[string](t, conn, who); got != "" {
		t.Errorf("%q after the transaction", got)
	}
	if got := list[string](t, conn, "SELECT slug FROM organizations"); len(got) != 0 {
		t.Error(got)
	}
}

func TestX01_AccountsAreVisibleToThemselvesAndTheirOrganisation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const names = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM accounts"
	for _, c := range []struct{ org, account, want string }{
		{"org", "owner", ids["owner"] + " " + ids["co_owner"] + " " + ids["member"]},
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
}

func TestW13_KeyHashesAreNotReadable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, err := attempt(t, w.app, "", "SELECT key_hash FROM api_keys")
	refuses(t, err, "42501", "")
	if tag, err := attempt(t, w.app, "", "SELECT name FROM api_keys"); err != nil || tag.RowsAffected() != 1 {
		t.Error(tag, err)
	}
}

func TestX01_TheControlPlaneIsReadOnlyToRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, table := range []string{"accounts", "organizations", "organization_members", "api_keys"} {
		for _, sql := range []string{"INSERT INTO %s DEFAULT VALUES", "UPDATE %s SET metadata = '{}'", "DELETE FROM %s", "TRUNCATE %s CASCADE"} {
			_, err := attempt(t, w.app, "", fmt.Sprintf(sql, table))
			refuses(t, err, "42501", "")
		}
		if tag, err := attempt(t, w.app, "", "SELECT metadata FROM "+table); err != nil || tag.RowsAffected() == 0 {
			t.Error(table, tag, err)
		}
	}
	_, err := attempt(t, w.app, "", "SELECT bootstrap_hub('x', 'x', 'x', sha256('x'))")
	refuses(t, err, "42501", "")
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

	exec(t, w.hub, "DELETE FROM sessions; DELETE FROM clients; DELETE FROM projects; DELETE FROM roles; DELETE FROM organizations")
	if get[bool](t, w.app, "SELECT hub_is_bootstrapped()") {
		t.Error("there is no organisation")
	}
	var group sync.WaitGroup
	orgs := make([]*string, 8)
	for i := range orgs {
		conn := connect(t, w.url)
		exec(t, w.hub, "GRANT EXECUTE ON FUNCTION bootstrap_hub(text, text, text, bytea) TO hub_app")
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
	if got := get[string](t, w.app, "SELECT org_id || ' ' || account_id FROM authenticate(sha256('first'), '{projects:admin,platform:*}')"); got == "" {
		t.Error("the first key does not work")
	}
}
