package api_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/alkdev/hub/internal/api"
)

// Two servers of one database, many clients with one key, requests of all kinds. The key is withdrawn by one of the servers: no request
// that starts after that answer succeeds, on neither.
func TestW02_NothingSucceedsAfterTheAnswer(t *testing.T) {
	t.Parallel()
	const clients, after = 12, 4
	few := func(_ *api.Config, c *pgxpool.Config) { c.MaxConns = 6 }
	h := newHub(t, few)
	servers := []*hub{h, h.replica(t, few)}
	for name, w := range map[string]func(c caller) (path string, body any){
		"revoke":                    func(c caller) (string, any) { return "/v1/api-keys/" + c.id.String() + "/revoke", nil },
		"revoke with a retry's key": func(c caller) (string, any) { return "/v1/api-keys/" + c.id.String() + "/revoke", nil },
		"disable":                   func(c caller) (string, any) { return "/v1/api-keys/" + c.id.String() + "/disable", nil },
		"rotate at once":            func(c caller) (string, any) { return "/v1/api-keys/" + c.id.String() + "/rotate", `{"graceSeconds":0}` },
		"suspend":                   func(c caller) (string, any) { return "/v1/accounts/" + c.account.String() + "/suspend", nil },
		"deactivate":                func(c caller) (string, any) { return "/v1/accounts/" + c.account.String() + "/deactivate", nil },
	} {
		t.Run(name, func(t *testing.T) {
			c := h.newMember(t, h.admin.org, "member", "*")
			f := h.newFamily(t, h.admin)
			var withdrawn atomic.Bool
			var before atomic.Int32
			var group sync.WaitGroup
			for i := range clients {
				group.Go(func() {
					server := servers[i%2]
					for late, n := 0, 0; late < after; n++ {
						isLate := withdrawn.Load() // what starts now starts after the answer
						var a answer
						switch (i + n) % 6 {
						case 0:
							a = server.as(t, c, "GET", "/v1/me", nil)
						case 1:
							a = server.as(t, c, "GET", "/v1/sessions/"+f.session+"/export", nil)
						case 2:
							a = server.as(t, c, "POST", "/v1/sessions/"+f.session+"/messages", `{"messages":[{"role":"user"}]}`)
						case 3:
							a = server.as(t, c, "POST", "/v1/projects", `{"slug":"s-`+uuid.NewString()+`","name":"n"}`, "Idempotency-Key", uuid.NewString())
						case 4:
							a = server.importFile(t, c, f.project, export{id: "ses_" + uuid.NewString()})
						case 5:
							a = server.as(t, c, "PATCH", "/v1/sessions/"+f.session, `{"data":{"n":1}}`)
						}
						switch {
						case isLate && a.status != 401:
							t.Errorf("status %d after the answer: %s", a.status, a.body)
							return
						case isLate:
							late++
						case a.status < 300:
							before.Add(1)
						case a.status != 401:
							t.Errorf("status %d: %s", a.status, a.body)
						}
					}
				})
			}
			eventually(t, "all of it is under way", func() bool { return before.Load() > 4*clients || t.Failed() })
			path, body := w(c)
			var headers []string
			if name == "revoke with a retry's key" {
				headers = []string{"Idempotency-Key", "r"}
			}
			a := h.do(t, "POST", path, body, headers...)
			withdrawn.Store(true)
			if a.status != 200 && a.status != 201 {
				t.Errorf("status %d: %s", a.status, a.body)
			}
			group.Wait()
		})
	}
}

// A request that began before, and waits for a lock while its key is revoked, may finish or not; what it answers is what it did.
func TestW02_ARequestUnderWay(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	c := h.newMember(t, h.admin.org, "member", "*")
	f := h.newFamily(t, h.admin)
	locked := h.begin(t)
	locked("SELECT FROM projects WHERE id = $1 FOR UPDATE", f.project)
	got := make(chan answer, 1)
	go func() { got <- h.as(t, c, "PATCH", "/v1/projects/"+f.project, `{"name":"under way"}`) }()
	eventually(t, "it waits for the lock", func() bool { return h.waiting() == 1 })
	h.do(t, "POST", "/v1/api-keys/"+c.id.String()+"/revoke", nil).wants(t, 200) // it does not wait for it
	h.as(t, c, "GET", "/v1/me", nil).refused(t, 401, "unauthenticated")
	locked("ROLLBACK")
	a := <-got
	var name string
	h.scan(t, &name, "SELECT name FROM projects WHERE id = $1", f.project)
	if (a.status == 200) != (name == "under way") {
		t.Errorf("status %d, and the name is %s", a.status, name)
	}
}
