package postgres

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// defaults suit a small server beside hub; Config.Settings may override each. They go onto the server's command line at
// every start, so that a newer hub's defaults reach older clusters; ALTER SYSTEM cannot override them there.
var defaults = map[string]string{
	"cluster_name":       "hub", // shows in ps
	"shared_buffers":     "128MB",
	"max_connections":    "100",
	"synchronous_commit": "on", // what hub has acknowledged survives a power cut
	"wal_compression":    "on",
	"random_page_cost":   "1.1", // for SSDs
	"jit":                "off", // hub's queries are short: compiling them takes longer than running them
	"log_line_prefix":    "%m [%p] %d ",
	"log_destination":    "stderr",
	"log_checkpoints":    "off", // one every five minutes says nothing on a small server
	// Not UTC, which needs time zone files that a small system may lack; GMT is built in.
	"timezone":     "GMT",
	"log_timezone": "GMT",
}

// fixed are the settings that this package relies on.
func fixed(l layout, socketDir string) map[string]string {
	return map[string]string{
		"data_directory":          l.cluster(),
		"listen_addresses":        "", // no TCP: trust is for who can enter the socket's directory
		"unix_socket_directories": `"` + strings.ReplaceAll(socketDir, `"`, `""`) + `"`,
		"unix_socket_permissions": "0700",
		"port":                    port,
		"logging_collector":       "off", // stderr is the log, see logfile.go
	}
}

// refused are further settings that would undo the fixed ones.
var refused = []string{"config_file", "hba_file", "ident_file", "external_pid_file", "unix_socket_group"}

// arguments are those of postgres: "-c", "name=value", ...
func arguments(l layout, socketDir string, own map[string]string) []string {
	all := maps.Clone(defaults)
	maps.Copy(all, own)
	maps.Copy(all, fixed(l, socketDir))
	args := make([]string, 0, 2+2*len(all))
	args = append(args, "-D", l.cluster())
	for _, name := range slices.Sorted(maps.Keys(all)) {
		args = append(args, "-c", name+"="+all[name])
	}
	return args
}

// normalize writes the names of settings as PostgreSQL does, and refuses those that are not for others to choose.
func normalize(settings map[string]string) (map[string]string, error) {
	taken := fixed(layout{}, "")
	clean := make(map[string]string, len(settings))
	for given, value := range settings {
		name := strings.ReplaceAll(strings.ToLower(strings.TrimSpace(given)), "-", "_")
		_, isTaken := taken[name]
		if name == "" || strings.Contains(name, "=") || isTaken || slices.Contains(refused, name) {
			return nil, fmt.Errorf("the PostgreSQL setting %q is not for Config.Settings: it is none, or hub's own to choose", given)
		}
		clean[name] = value
	}
	return clean, nil
}

// isOff says whether a setting is switched off, in any of PostgreSQL's ways to say so.
func isOff(value string) bool {
	switch strings.ToLower(strings.TrimSpace(value)) {
	case "off", "of", "false", "fals", "fal", "fa", "f", "no", "n", "0":
		return true
	}
	return false
}
