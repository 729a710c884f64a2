package sql_test

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
)

const idempotencyFixture = `
INSERT INTO idempotency_keys (org_id, account_id, key, request, status, body) VALUES
	(@org, @owner, 'key', sha256('request'), 201, 'answer'), (@org, @member, 'key', sha256('request'), 201, NULL), (@other_org, @other_owner, 'key', sha256('request'), 204, NULL);`

const newIdempotencyKey = "INSERT INTO idempotency_keys (org_id, account_id, key, request, status, %s) VALUES (@org, @owner, 'x', sha256('x'), 200, ??)"

var idempotencyRules = []ruleCase{
	{rule: "idempotency_keys_tenant", sql: "INSERT INTO idempotency_keys (org_id, account_id, key, request, status) VALUES (??, @owner, 'x', sha256('x'), 200)", bad: []string{"@other_org", "@new"}, good: []string{"@org"}},
	{rule: "idempotency_keys_limited", sql: "INSERT INTO idempotency_keys (org_id, account_id, key, request, status) VALUES (@org, ??, 'x', sha256('x'), 200)", bad: []string{"@co_owner", "@member", "@new"}, good: []string{"@owner"}},
	{rule: "idempotency_keys_pkey", hub: true, sql: fmt.Sprintf(newIdempotencyKey, "id"), bad: []string{"(SELECT id FROM idempotency_keys WHERE account_id = @owner)"}, good: []string{"@new", "(SELECT id FROM idempotency_keys WHERE account_id = @other_owner)"}},
	{rule: "idempotency_keys_id_version_check", hub: true, sql: fmt.Sprintf(newIdempotencyKey, "id"), bad: notUUIDv7, good: uuidv7},
	{
		rule: "idempotency_keys_key_key", hub: true, sql: "INSERT INTO idempotency_keys (org_id, account_id, key, request, status) VALUES (??, sha256('x'), 200)",
		bad: []string{"@org, @owner, 'key'", "@org, @member, 'key'"}, good: []string{"@org, @owner, 'Key'", "@org, @owner, 'key '", "@org, @admin, 'key'"},
	},
	{
		rule: "idempotency_keys_account_id_fkey", hub: true, sql: "INSERT INTO idempotency_keys (org_id, account_id, key, request, status) VALUES (@org, ??, 'x', sha256('x'), 200)",
		bad: []string{"@nobody", "@other_owner", "@new"}, good: []string{"@member", "@owner"},
	},
	{
		rule: "idempotency_keys_key_length_check", sql: "INSERT INTO idempotency_keys (org_id, account_id, key, request, status) VALUES (@org, @owner, ??, sha256('x'), 200)",
		bad: []string{"''", "repeat('a', 256)", "repeat('ä', 128)"}, good: []string{"'x'", "repeat('a', 255)", "repeat('ä', 127)"},
	},
	{
		rule: "idempotency_keys_request_length_check", sql: "INSERT INTO idempotency_keys (org_id, account_id, key, request, status) VALUES (@org, @owner, 'x', ??, 200)",
		bad: []string{"''", "sha224('x')", "sha512('x')"}, good: []string{"sha256('x')"},
	},
	{
		rule: "idempotency_keys_status_check", sql: "INSERT INTO idempotency_keys (org_id, account_id, key, request, status) VALUES (@org, @owner, 'x', sha256('x'), ??)",
		bad: []string{"199", "300", "409", "500", "0"}, good: []string{"200", "201", "204", "299"},
	},
}

var idempotencyDeletes = []deleteCase{
	{fk: "idempotency_keys_account_id_fkey", delete: "DELETE FROM organization_members WHERE account_id = @member", gone: "SELECT NOT EXISTS (SELECT FROM idempotency_keys WHERE account_id = @member) AND EXISTS (SELECT FROM idempotency_keys WHERE account_id = @owner)"},
}

func TestX09_IdempotencyRules(t *testing.T) {
	t.Parallel()
	checkRules(t, idempotencyRules)
}

func TestX09_IdempotencyDeletes(t *testing.T) {
	t.Parallel()
	checkDeletes(t, idempotencyDeletes)
}

// An answer is for who got it: neither for another account of the organisation, whatever its level, nor for the same account elsewhere.
func TestX09_AnAnswerIsForWhoGotIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const seen = "SELECT string_agg(account_id::text, ' ' ORDER BY account_id) FROM idempotency_keys"
	exec(t, w.hub, "INSERT INTO organization_members (org_id, account_id, membership_level) VALUES (@other_org, @owner, 'owner')")
	for _, c := range []struct{ org, account, want string }{
		{"org", "owner", ids["owner"]}, {"org", "member", ids["member"]}, {"org", "co_owner", ""}, {"org", "admin", ""},
		{"other_org", "owner", ""}, {"other_org", "other_owner", ids["other_owner"]}, {"new", "nobody", ""},
	} {
		for _, platform := range []string{"''", "'on'"} {
			conn := w.connect(t, c.org, c.account)
			exec(t, conn, acting(c.org, c.account, false, "platform", platform))
			if got := get[*string](t, conn, seen); (got == nil) != (c.want == "") || got != nil && *got != c.want {
				t.Errorf("%s in %s (platform: %s) sees the answers of %v, want %q", c.account, c.org, platform, got, c.want)
			}
			if tag := exec(t, conn, "DELETE FROM idempotency_keys WHERE account_id <> '"+ids[c.account]+"'"); tag.RowsAffected() != 0 {
				t.Errorf("%s in %s: %s", c.account, c.org, tag)
			}
		}
	}
	if got := get[*string](t, connect(t, w.url), seen); got != nil {
		t.Errorf("nobody sees those of %s", *got)
	}
	_, err := attempt(t, w.app, "", "UPDATE idempotency_keys SET body = 'another answer'")
	refuses(t, err, "42501", "")
	_, err = attempt(t, w.app, "", "INSERT INTO idempotency_keys (org_id, account_id, key, request, status, created_at) VALUES (@org, @owner, 'x', sha256('x'), 200, 'infinity')")
	refuses(t, err, "42501", "")
}

func TestX09_AKeyIsClaimedRecordedAndExpires(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := w.connect(t, "org", "owner")
	claiming, recording := queryNamed(t, "ClaimIdempotencyKey"), queryNamed(t, "RecordIdempotentAnswer")
	for _, conn := range []*pgx.Conn{w.app, other} {
		claiming.prepare(t, conn)
		recording.prepare(t, conn)
	}
	type answer struct {
		claimed bool
		status  *int
		body    *string
	}
	claim := func(c *pgx.Conn, key string) (a answer) {
		t.Helper()
		rows, err := c.Query(t.Context(), claiming.execute(t, "key", "'"+key+"'"), pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			t.Fatal(err)
		}
		if !rows.Next() {
			t.Fatal(rows.Err())
		}
		values, err := rows.Values()
		if err != nil {
			t.Fatal(err)
		}
		rows.Close()
		for i, field := range rows.FieldDescriptions() {
			switch value := values[i].(type) {
			case bool:
				a.claimed = value
			case int32:
				status := int(value)
				a.status = &status
			case []byte:
				if field.Name == "body" {
					body := string(value)
					a.body = &body
				}
			}
		}
		return a
	}
	record := func(c *pgx.Conn, key, body string) {
		t.Helper()
		exec(t, c, recording.execute(t, "key", "'"+key+"'", "request", "sha256('request')", "status", "201", "headers", "'{}'", "body", "'"+body+"'"))
	}
	is := func(what string, got answer, claimed bool, body string) {
		t.Helper()
		if got.claimed != claimed || (got.status != nil) != (body != "") || (got.body != nil) != (body != "") || got.body != nil && *got.body != body {
			t.Errorf("%s: claimed %v, %v %v; want %v %q", what, got.claimed, got.status, got.body, claimed, body)
		}
	}

	exec(t, w.app, "BEGIN")
	is("the first request", claim(w.app, "new"), true, "")
	exec(t, other, "BEGIN")
	is("another one while it is under way", claim(other, "new"), false, "")
	is("another key meanwhile", claim(other, "newer"), true, "")
	exec(t, other, "COMMIT")
	record(w.app, "new", "one")
	exec(t, w.app, "COMMIT")
	is("a retry", claim(other, "new"), true, "one")

	exec(t, w.app, "BEGIN")
	claim(w.app, "undone")
	record(w.app, "undone", "x")
	exec(t, w.app, "ROLLBACK")
	is("after a request that failed", claim(other, "undone"), true, "")

	// One commits: what the lock does not stop (two keys with one hash, a lock that was lost) the constraint does.
	_, err := attempt(t, other, "", recording.execute(t, "key", "'new'", "request", "sha256('request')", "status", "201", "headers", "'{}'", "body", "'two'"))
	refuses(t, err, "23505", "idempotency_keys_key_key")

	// After a day the key is as good as new, whether the sweeper has been there or not.
	exec(t, w.hub, "UPDATE idempotency_keys SET created_at = now() - interval '24 hours 1 second' WHERE key = 'new'")
	is("after a day", claim(other, "new"), true, "")
	record(other, "new", "three")
	is("a retry of that", claim(w.app, "new"), true, "three")
	if got := get[int](t, w.app, "SELECT count(*) FROM idempotency_keys WHERE key = 'new'"); got != 1 {
		t.Errorf("%d answers", got)
	}
	exec(t, w.hub, "UPDATE idempotency_keys SET created_at = now() - interval '23 hours 59 minutes' WHERE key = 'new'")
	is("shortly before", claim(w.app, "new"), true, "three")
}

func TestX09_ExpiredAnswersArePurged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, `
		INSERT INTO idempotency_keys (org_id, account_id, key, request, status, created_at)
		SELECT m.org_id, m.account_id, 'old-' || n, sha256('x'), 200, now() - interval '25 hours' FROM organization_members m, generate_series(1, 10) n WHERE m.account_id IN (@owner, @other_owner);
		INSERT INTO idempotency_keys (org_id, account_id, key, request, status, created_at) VALUES (@org, @owner, 'young', sha256('x'), 200, now() - interval '23 hours')`)
	nobody := connect(t, w.url)
	var batches []int
	for {
		n := get[int](t, nobody, "SELECT purge_idempotency_keys(8)")
		batches = append(batches, n)
		if n == 0 || len(batches) > 9 {
			break
		}
		if n > 8 {
			t.Errorf("%d in a batch of 8", n)
		}
	}
	total := 0
	for _, n := range batches {
		total += n
	}
	if total != 20 {
		t.Errorf("the batches are %v", batches)
	}
	if got := get[string](t, w.hub, "SELECT string_agg(DISTINCT key, ' ' ORDER BY key) || ' ' || count(*) FROM idempotency_keys"); got != "key young 4" {
		t.Errorf("left: %s", got)
	}
}
