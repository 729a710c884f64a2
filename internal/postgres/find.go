package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// MinMajor is the oldest major version of PostgreSQL that hub works with.
const MinMajor = 15

// Install is a PostgreSQL server installed on this machine.
type Install struct {
	BinDir string   // absolute, symlinks resolved; holds initdb and postgres
	Major  int      // 15, 16, ...
	Env    []string // "NAME=value" that its programs need beyond hub's own; empty unless unpacked by install.sh
}

// Find looks for a PostgreSQL server of version MinMajor or newer. A hint, the bin directory given by --postgres-bin, is
// the only place looked at if it is not empty; otherwise it is the first of these that has one:
//
//	/usr/lib/postgresql/*/bin (the newest), /usr/local/pgsql/bin, the PATH, what pg_config says,
//	and $HOME/.cache/hub/postgresql/usr/lib/postgresql/*/bin, where install.sh unpacks one for who is not root
//
// As root, a server that the unprivileged user of Start could not run does not count. The error says where it looked, what
// was wrong there, and how to get a server.
func Find(ctx context.Context, hint string) (Install, error) {
	return usualPlaces().find(ctx, hint, 0)
}

// places are where find looks; a test has its own.
type places struct {
	fixed  []string // patterns of bin directories, looked at before the PATH
	path   string   // like $PATH
	cached string   // pattern of bin directories, looked at last
}

func usualPlaces() places {
	p := places{
		fixed: []string{"/usr/lib/postgresql/*/bin", "/usr/local/pgsql/bin"},
		path:  os.Getenv("PATH"),
	}
	if home, err := os.UserHomeDir(); err == nil {
		p.cached = filepath.Join(home, ".cache/hub/postgresql/usr/lib/postgresql/*/bin")
	}
	return p
}

// find is Find, except that it prefers a server of major version want, if want is not 0: a cluster of version 15 is to be
// served by 15 although 17 has been installed beside it.
func (p places) find(ctx context.Context, hint string, want int) (Install, error) {
	if hint != "" {
		in, err := inspect(ctx, hint)
		if err != nil {
			return Install{}, fmt.Errorf("no usable PostgreSQL server in %s: %w.\n%s", hint, err, howToGetOne)
		}
		return in, nil
	}

	var first Install
	var looked []string
	seen := map[string]bool{}
	for _, look := range p.inOrder(ctx) {
		dirs, remark := look()
		if remark != "" {
			looked = append(looked, remark)
		}
		for _, dir := range dirs {
			if real, err := filepath.EvalSymlinks(dir); err == nil {
				dir = real
			}
			if seen[dir] {
				continue
			}
			seen[dir] = true
			in, err := inspect(ctx, dir)
			switch {
			case err != nil:
				looked = append(looked, dir+": "+err.Error())
			case want == 0 || in.Major == want:
				return in, nil
			case first.BinDir == "":
				first = in
			}
		}
	}
	if first.BinDir != "" {
		return first, nil
	}
	if err := ctx.Err(); err != nil {
		return Install{}, err
	}
	return Install{}, fmt.Errorf(
		"no PostgreSQL server (initdb and postgres, version %d or newer) was found. Looked in:\n  %s\n%s",
		MinMajor, strings.Join(looked, "\n  "), howToGetOne)
}

const howToGetOne = "Get one with `make postgres` (Debian and Ubuntu, also without root), name the bin directory of one with --postgres-bin,\n" +
	"or set DATABASE_URL to use a server that runs already."

// inOrder are the places one by one, as functions so that pg_config is only run when everything before it failed. Each
// gives bin directories, or a remark why it gives none.
func (p places) inOrder(ctx context.Context) []func() (dirs []string, remark string) {
	glob := func(pattern string) func() ([]string, string) {
		return func() ([]string, string) {
			dirs, _ := filepath.Glob(pattern)
			if len(dirs) == 0 {
				return nil, pattern + ": nothing there"
			}
			slices.SortFunc(dirs, func(a, b string) int { return versionInPath(b) - versionInPath(a) })
			return dirs, ""
		}
	}
	var all []func() ([]string, string)
	for _, pattern := range p.fixed {
		all = append(all, glob(pattern))
	}
	all = append(all,
		func() ([]string, string) {
			program := lookPath(p.path, "postgres")
			if program == "" {
				return nil, "PATH: no postgres in " + p.path
			}
			return []string{filepath.Dir(program)}, ""
		},
		func() ([]string, string) {
			program := lookPath(p.path, "pg_config")
			if program == "" {
				return nil, "pg_config --bindir: no pg_config in PATH"
			}
			out, err := exec.CommandContext(ctx, program, "--bindir").Output()
			if err != nil {
				return nil, fmt.Sprintf("%s --bindir: %v", program, err)
			}
			return []string{strings.TrimSpace(string(out))}, ""
		})
	if p.cached != "" {
		all = append(all, glob(p.cached))
	}
	return all
}

// lookPath is the program that a shell would run, with symlinks resolved: /usr/local/bin/postgres may be a link into a
// directory that holds initdb too. Empty if there is none.
func lookPath(path, program string) string {
	for _, dir := range filepath.SplitList(path) {
		file, err := filepath.EvalSymlinks(filepath.Join(dir, program))
		if err == nil && isExecutable(file) == nil {
			return file
		}
	}
	return ""
}

// versionInPath is the number in /usr/lib/postgresql/NN/bin, which is newer than its neighbour when larger (9.6 is 9).
func versionInPath(dir string) int {
	major, _, _ := strings.Cut(filepath.Base(filepath.Dir(dir)), ".")
	n, _ := strconv.Atoi(major)
	return n
}

var versionLine = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// inspect says what is in a bin directory, by running what it finds: as the user that the server would run as, so that
// a directory which that user cannot read does not count.
func inspect(ctx context.Context, dir string) (Install, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Install{}, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return Install{}, errors.New("no such directory")
	}
	for _, program := range []string{"initdb", "postgres"} {
		if err := isExecutable(filepath.Join(dir, program)); err != nil {
			return Install{}, err
		}
	}
	a, err := serverAccount()
	if err != nil {
		return Install{}, err
	}
	if obstacle, ok := a.mayEnter(dir); !ok {
		return Install{}, fmt.Errorf("user %s, whom the server would run as, may not enter %s", a.name, obstacle)
	}
	in := Install{BinDir: dir, Env: unpackedEnv(dir)}
	out, err := in.version(ctx, a)
	if err != nil {
		return Install{}, err
	}
	match := versionLine.FindStringSubmatch(out)
	if match == nil {
		return Install{}, fmt.Errorf("postgres --version says %q", out)
	}
	in.Major, _ = strconv.Atoi(match[1])
	if in.Major < MinMajor {
		return Install{}, fmt.Errorf("it is version %d, and hub needs %d or newer", in.Major, MinMajor)
	}
	return in, nil
}

func (in Install) version(ctx context.Context, a account) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(in.BinDir, "postgres"), "--version")
	cmd.Env = in.environment()
	cmd.Dir = "/"
	cmd.SysProcAttr = a.attributes()
	cmd.SysProcAttr.Pdeathsig = 0 // gone in a moment, and this goroutine's thread is not locked
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return "", fmt.Errorf("postgres --version: %w %s", err, text)
	}
	return text, nil
}

// environment is all that the programs of PostgreSQL get to see. Hub's own environment may hold keys, which are not for
// the server's user to read in /proc, and PG* variables, which are meant for clients and would change the server.
func (in Install) environment() []string {
	env := []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C"}
	if path := os.Getenv("LD_LIBRARY_PATH"); path != "" {
		env = append(env, "LD_LIBRARY_PATH="+path)
	}
	return append(env, in.Env...) // of two with one name exec takes the later
}

// unpackedEnv is what the programs in dir need when it is part of a tree that Debian packages were unpacked into, and not
// the system's own: their libraries lie in that tree, and are not where the linker would look.
func unpackedEnv(dir string) []string {
	above, found := strings.CutSuffix(filepath.Dir(filepath.Dir(dir)), "/usr/lib/postgresql")
	if !found || above == "" {
		return nil
	}
	libraries, _ := filepath.Glob(above + "/usr/lib/*-linux-*")
	more, _ := filepath.Glob(above + "/lib/*-linux-*")
	if libraries = append(libraries, more...); len(libraries) == 0 {
		return nil
	}
	return []string{"LD_LIBRARY_PATH=" + strings.Join(libraries, ":")}
}

func isExecutable(file string) error {
	info, err := os.Stat(file)
	switch {
	case err != nil:
		return fmt.Errorf("no %s there", filepath.Base(file))
	case info.IsDir() || info.Mode()&0o111 == 0:
		return fmt.Errorf("%s cannot be run", file)
	}
	return nil
}
