package api_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/labstack/echo/v4"

	"github.com/alkdev/hub/internal/api"
	"github.com/alkdev/hub/internal/postgres/pgtest"
)

// load sends n requests over c connections and returns the rate in requests/s.
func load(b *testing.B, c, n int, send func(*http.Client) (*http.Response, error)) float64 {
	b.Helper()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: c}}
	defer client.CloseIdleConnections()
	next := make(chan struct{}, n)
	for range n {
		next <- struct{}{}
	}
	close(next)
	start := time.Now()
	var group sync.WaitGroup
	for range c {
		group.Go(func() {
			for range next {
				response, err := send(client)
				if err != nil {
					b.Error(err)
					return
				}
				if response.StatusCode >= 300 {
					b.Error(response.Status)
				}
				_, _ = io.Copy(io.Discard, response.Body)
				response.Body.Close()
			}
		})
	}
	group.Wait()
	return float64(n) / time.Since(start).Seconds()
}

// BenchmarkBesideBare measures getSession beside a handler that does nothing but the same query on echo and pgx, in turns in one
// run. The ratio is what authentication, tenancy, validation and logging cost together.
func BenchmarkBesideBare(b *testing.B) {
	h := newHub(b)
	session := h.newSession(b)
	pool, err := pgxpool.New(b.Context(), pgtest.URL(b, "hub"))
	if err != nil {
		b.Fatal(err)
	}
	defer pool.Close()
	bare := echo.New()
	bare.GET("/v1/sessions/:id", func(c echo.Context) error {
		rows, err := pool.Query(c.Request().Context(), "SELECT * FROM sessions WHERE org_id = $1 AND id = $2", h.admin.org, c.Param("id"))
		if err != nil {
			return err
		}
		row, err := pgx.CollectExactlyOneRow(rows, pgx.RowToMap)
		if err != nil {
			return err
		}
		return c.JSON(http.StatusOK, row)
	})
	bareServer := httptest.NewServer(bare)
	defer bareServer.Close()
	get := func(base string) func(*http.Client) (*http.Response, error) {
		return func(c *http.Client) (*http.Response, error) {
			r, _ := http.NewRequestWithContext(b.Context(), http.MethodGet, base+"/v1/sessions/"+session, nil)
			r.Header.Set("Authorization", "Bearer "+h.admin.key)
			return c.Do(r)
		}
	}
	for _, c := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("c=%d", c), func(b *testing.B) {
			const n = 2000
			load(b, c, n, get(bareServer.URL))
			load(b, c, n, get(h.url))
			var ours, theirs float64
			for b.Loop() {
				ours += load(b, c, n, get(h.url))
				theirs += load(b, c, n, get(bareServer.URL))
			}
			b.ReportMetric(ours/float64(b.N), "hub-requests/s")
			b.ReportMetric(theirs/float64(b.N), "bare-requests/s")
			b.ReportMetric(ours/theirs, "hub/bare")
		})
	}
}

// BenchmarkOperations measures the operations that agents live on.
func BenchmarkOperations(b *testing.B) {
	h := newHub(b)
	session := h.newSession(b)
	messages := "/v1/sessions/" + session + "/messages"
	body := `{"messages":[{"role":"assistant","data":{"modelID":"m"},"parts":[{"type":"text","data":{"text":"` + strings.Repeat("word ", 60) + `"}},{"type":"step-finish","data":{"reason":"stop","cost":0.01}}]}]}`
	for range 50 {
		h.do(b, "POST", messages, body).wants(b, http.StatusCreated)
	}
	send := func(method, path, body string) func(*http.Client) (*http.Response, error) {
		return func(c *http.Client) (*http.Response, error) {
			var reader io.Reader
			if body != "" {
				reader = strings.NewReader(body)
			}
			r, _ := http.NewRequestWithContext(b.Context(), method, h.url+path, reader)
			r.Header.Set("Authorization", "Bearer "+h.admin.key)
			r.Header.Set("Content-Type", "application/json")
			return c.Do(r)
		}
	}
	other := h.newSession(b)
	project := h.newProject(b, "bench")
	for _, op := range []struct {
		name string
		send func(*http.Client) (*http.Response, error)
		n    int
	}{
		{"createSession", send("POST", "/v1/sessions", `{"projectId":"`+project+`","title":"a session"}`), 1000},
		{"appendMessage", send("POST", "/v1/sessions/"+other+"/messages", body), 500},
		{"listMessages50", send("GET", messages, ""), 500},
		{"listSessions100", send("GET", "/v1/sessions?limit=100&projectId="+project, ""), 300},
	} {
		for _, c := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/c=%d", op.name, c), func(b *testing.B) {
				var rate float64
				for b.Loop() {
					rate += load(b, c, op.n, op.send)
				}
				b.ReportMetric(rate/float64(b.N), "requests/s")
			})
		}
	}
}

// BenchmarkImport measures importing and re-importing the largest of the real exports.
func BenchmarkImport(b *testing.B) {
	h := newHub(b)
	project := h.newProject(b, "bench")
	text, err := os.ReadFile(filepath.Join("..", "opencode", "testdata", "02-tools-fix-discount.json"))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(text)))
	b.Run("again", func(b *testing.B) {
		for b.Loop() {
			h.do(b, "POST", "/v1/sessions/import?projectId="+project, text)
		}
	})
	b.Run("new", func(b *testing.B) {
		for b.Loop() {
			h.exec(b, "DELETE FROM sessions")
			h.do(b, "POST", "/v1/sessions/import?projectId="+project, text).wants(b, http.StatusCreated)
		}
	})
}

// BenchmarkTasks measures a project's first sync, a sync of what has not changed, and its graph.
func BenchmarkTasks(b *testing.B) {
	h := newHub(b)
	for _, n := range []int{1000, 10_000} {
		var files []string
		for i := range n {
			dependsOn := "[]"
			if i >= 10 {
				dependsOn = fmt.Sprintf(`["t/%05d", "t/%05d"]`, i-10, i-1-i%7)
			}
			files = append(files, fmt.Sprintf(`{"path":"t/%05d.md","text":"---\nid: t/%05d\nname: Task %d\nstatus: pending\nscope: narrow\nrisk: medium\nimpact: component\ntags: [a, b]\ndepends_on: %s\n---\n%s\n"}`,
				i, i, i, strings.ReplaceAll(dependsOn, `"`, `\"`), strings.Repeat("what is to be done ", 20)))
		}
		body := `{"files":[` + strings.Join(files, ",") + `]}`
		b.Run(fmt.Sprintf("sync-%d", n), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				project := h.newProject(b, fmt.Sprintf("sync-%d-%d-%d", n, b.N, i))
				h.do(b, "POST", "/v1/projects/"+project+"/tasks/sync", body).wants(b, http.StatusOK)
			}
		})
		project := h.newProject(b, fmt.Sprintf("graph-%d", n))
		h.do(b, "POST", "/v1/projects/"+project+"/tasks/sync", body).wants(b, http.StatusOK)
		for _, what := range []struct{ name, method, path, body string }{
			{"sync-again", "POST", "/tasks/sync", body}, {"graph", "GET", "/tasks/graph", ""}, {"costs", "GET", "/tasks/costs", ""}, {"dot", "GET", "/tasks/graph?format=dot", ""},
		} {
			b.Run(fmt.Sprintf("%s-%d", what.name, n), func(b *testing.B) {
				for b.Loop() {
					h.do(b, what.method, "/v1/projects/"+project+what.path, what.body).wants(b, http.StatusOK)
				}
			})
		}
	}
}

// BenchmarkCalls measures calls through the hub, from callOperation to its answer, with one spoke that does nothing.
func BenchmarkCalls(b *testing.B) {
	h := newHub(b, live(b), func(c *api.Config, _ *pgxpool.Config) { c.RateLimit = -1 })
	s := h.newSpoke(b, h.admin, "builder", readFile)
	post := func(client *http.Client, path, body string) (*http.Response, error) {
		r, _ := http.NewRequestWithContext(b.Context(), http.MethodPost, h.url+path, strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+h.admin.key)
		r.Header.Set("Content-Type", "application/json")
		return client.Do(r)
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	defer client.CloseIdleConnections()
	go func() {
		for b.Context().Err() == nil {
			response, err := post(client, "/v1/spokes/"+s.ID+"/take", fmt.Sprintf(`{"epoch":%d,"maxCalls":20,"waitSeconds":5}`, s.Epoch))
			if err != nil {
				return
			}
			var got struct{ Calls []taken }
			err = json.NewDecoder(response.Body).Decode(&got)
			response.Body.Close()
			if err != nil {
				return
			}
			for _, call := range got.Calls {
				go func() {
					for _, step := range []string{"start", "complete"} {
						body := fmt.Sprintf(`{"spokeId":%q,"epoch":%d}`, s.ID, s.Epoch)
						if step == "complete" {
							body = fmt.Sprintf(`{"spokeId":%q,"epoch":%d,"output":{"ok":true}}`, s.ID, s.Epoch)
						}
						if response, err := post(client, "/v1/calls/"+call.ID+"/"+step, body); err == nil {
							_, _ = io.Copy(io.Discard, response.Body)
							response.Body.Close()
						}
					}
				}()
			}
		}
	}()
	for _, c := range []int{1, 8, 32} {
		b.Run(fmt.Sprintf("c=%d", c), func(b *testing.B) {
			var rate float64
			for b.Loop() {
				rate += load(b, c, 200, func(client *http.Client) (*http.Response, error) {
					return post(client, "/v1/operations/fs.read/call", `{"input":{"path":"x"}}`)
				})
			}
			b.ReportMetric(rate/float64(b.N), "calls/s")
		})
	}
}
