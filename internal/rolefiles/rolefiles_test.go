package rolefiles_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/alkdev/hub/internal/pgjson/jsonequal"
	"github.com/alkdev/hub/internal/rolefiles"
)

func TestName(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		".opencode/agents/build.md":                  "build",
		".opencode/agent/build.md":                   "build",
		"./.opencode/agents/review/security.md":      "review/security",
		"/home/a/shop/.opencode/agents/a/b/c.md":     "a/b/c",
		"agents/review/deep.dive.md":                 "review/deep.dive",
		"agent/x.md":                                 "x",
		"review/security.md":                         "review/security",
		`.opencode\agents\review\security.md`:        "review/security",
		"agents/../agents/x.md":                      "x",
		"agents/Überprüfung/法.md":                    "Überprüfung/法",
		"sub/.opencode/agents/x.md":                  "x",
		"agents/" + strings.Repeat("a", 200) + ".md": strings.Repeat("a", 200),
	} {
		if got, err := rolefiles.Name(path); err != nil || got != want {
			t.Errorf("%s: %q %v, want %q", path, got, err, want)
		}
	}
	for _, path := range []string{
		"agents/x.txt", "agents/x", "agents/.md", ".md", "agents/a/.md", "../x.md", "/x.md", "agents/../../x.md", "agents/" + strings.Repeat("a", 201) + ".md", "agents/x.MD",
	} {
		if got, err := rolefiles.Name(path); err == nil {
			t.Errorf("%s: %q, want an error", path, got)
		}
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ content, description, prompt, data string }{
		"no frontmatter":               {"You build.\n", "", "You build.", `{}`},
		"nothing":                      {"", "", "", `{}`},
		"all of it":                    {"---\ndescription: Builds\nmode: subagent\nmodel: a/b\n---\n\nYou build.\n\n---\nStill the prompt.\n", "Builds", "You build.\n\n---\nStill the prompt.", `{"mode":"subagent","model":"a/b"}`},
		"Windows":                      {"\ufeff---\r\ndescription: Builds\r\n---\r\nYou\r\nbuild.\r\n", "Builds", "You\nbuild.", `{}`},
		"no prompt":                    {"---\ndescription: Builds\n---", "Builds", "", `{}`},
		"empty frontmatter":            {"---\n---\nYou build.", "", "You build.", `{}`},
		"a comment alone":              {"---\n# nothing\n---\nYou build.", "", "You build.", `{}`},
		"no description":               {"---\ndescription:\nmode: all\n---\n", "", "", `{"mode":"all"}`},
		"unknown keys are kept":        {"---\nx-mine: {a: [1, 2.50, true, null, ~]}\ntools:\n  bash: false\n  \"my*\": true\n---\n", "", "", `{"x-mine":{"a":[1,2.50,true,null,null]},"tools":{"bash":false,"my*":true}}`},
		"numbers":                      {"---\na: 0x10\nb: 1e3\nc: .5\nd: 12345678901234567890123\ne: -0.10\nf: .inf\ng: 007\nh: 1_000\n---\n", "", "", `{"a":16,"b":1000,"c":0.5,"d":12345678901234567890123,"e":-0.10,"f":".inf","g":7,"h":1000}`},
		"texts that YAML types":        {"---\na: 2026-01-02\nb: yes\nc: 12:30:45\n---\n", "", "", `{"a":"2026-01-02","b":"yes","c":"12:30:45"}`},
		"names that YAML types":        {"---\n1: a\ntrue: b\n---\n", "", "", `{"1":"a","true":"b"}`},
		"aliases":                      {"---\na: &x {k: 1}\nb: *x\nc:\n  <<: *x\n  j: 2\n---\n", "", "", `{"a":{"k":1},"b":{"k":1},"c":{"k":1,"j":2}}`},
		"blocks":                       {"---\ndescription: >-\n  Builds\n  things\nnotes: |\n  one\n  two\n---\n", "Builds things", "", `{"notes":"one\ntwo\n"}`},
		"colons, as people write them": {"---\nname: x\ndescription: Use this when: the user asks. Examples: many\nmodel: sonnet\n---\nP", "Use this when: the user asks. Examples: many", "P", `{"name":"x","model":"sonnet"}`},
		"permissions":                  {"---\npermission:\n  edit: deny\n  bash:\n    \"git diff\": allow\n    \"*\": ask\n---\n", "", "", `{"permission":{"edit":"deny","bash":{"git diff":"allow","*":"ask"}}}`},
	} {
		r, err := rolefiles.Parse("n", c.content)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if r.Name != "n" || r.Description != c.description || r.Prompt != c.prompt {
			t.Errorf("%s: %+v", name, r)
		}
		if d := jsonequal.Diff([]byte(c.data), r.Data); d != nil {
			t.Errorf("%s: %v in %s", name, d, r.Data)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	bomb := "---\na: &a [x,x,x,x,x,x,x,x,x,x]\n"
	for i, name := range "bcdefgh" {
		bomb += fmt.Sprintf("%c: &%[1]c [%s]\n", name, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", 'a'+i), 10), ","))
	}
	for name, content := range map[string]string{
		"no end":               "---\ndescription: Builds\n",
		"a list":               "---\n- a\n---\n",
		"a text":               "---\njust text\n---\n",
		"no YAML":              "---\na: [1\n---\n",
		"a description twice":  "---\ndescription: a\ndescription: b\n---\n",
		"a description's type": "---\ndescription: [a]\n---\n",
		"a number for one":     "---\ndescription: 5\n---\n",
		"a list for a name":    "---\n? [a]\n: b\n---\n",
		"a bomb":               bomb + "---\n",
		"an endless one":       "---\na: &a [*a]\n---\n",
	} {
		if r, err := rolefiles.Parse("n", content); err == nil {
			t.Errorf("%s: %+v, want an error", name, r)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %q is not one line", name, err)
		}
	}
}
