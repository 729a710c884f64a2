package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A server that cannot be reached is passed over at once; one that is unavailable from the next request on.
func TestServersTakeTurns(t *testing.T) {
	t.Parallel()
	status := http.StatusOK
	serve := func(name string) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if name == "b" {
				w.WriteHeader(status)
			}
			_, _ = io.WriteString(w, name+r.URL.Path+string(body))
		}))
		t.Cleanup(server.Close)
		return server.URL
	}
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	all, err := newServers(gone.URL + ", " + serve("b") + "," + serve("c"))
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: all}
	send := func() string {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, all.urls[0].String()+"/v1/x", strings.NewReader(" body"))
		response, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, _ := io.ReadAll(response.Body)
		return string(text)
	}
	for i, want := range []string{"b/v1/x body", "b/v1/x body"} {
		if got := send(); got != want {
			t.Errorf("%d: %s, want %s", i, got, want)
		}
	}
	status = http.StatusServiceUnavailable
	if got := send() + " " + send(); got != "b/v1/x body c/v1/x body" {
		t.Error(got)
	}

	none, err := newServers(gone.URL + "," + gone.URL)
	if err != nil {
		t.Fatal(err)
	}
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, gone.URL, nil)
	if response, err := (&http.Client{Transport: none}).Do(r); err == nil {
		response.Body.Close()
		t.Error("nobody is there, and there is an answer")
	}
	for _, bad := range []string{"", "localhost", "http://a,", "::"} {
		if _, err := newServers(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
