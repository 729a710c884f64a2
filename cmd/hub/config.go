package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/alkdev/hub/internal/api"
	"github.com/alkdev/hub/internal/postgres"
)

// Each setting is a flag, and an environment variable where the flag is absent.

// fromEnv is the first of the variables that is set, or otherwise.
func fromEnv(otherwise string, names ...string) string {
	for _, name := range names {
		if value := os.Getenv(name); value != "" {
			return value
		}
	}
	return otherwise
}

func durationFromEnv(name string, otherwise time.Duration) (time.Duration, error) {
	text := os.Getenv(name)
	if text == "" {
		return otherwise, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%s: %q is no duration such as 30s", name, text)
	}
	return d, nil
}

func numberFromEnv(name string, otherwise, most int64) (int64, error) {
	text := os.Getenv(name)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%s: %q is no number above zero", name, text)
	}
	if n > most {
		return 0, fmt.Errorf("%s: at most %d", name, most)
	}
	return n, nil
}

// rateLimitFromEnv is HUB_RATE_LIMIT: requests per minute and key; "off" is -1.
func rateLimitFromEnv() (int64, error) {
	if os.Getenv("HUB_RATE_LIMIT") == "off" {
		return -1, nil
	}
	return numberFromEnv("HUB_RATE_LIMIT", 60_000, 1_000_000_000)
}

func metricsFromEnv() (open bool, err error) {
	switch text := os.Getenv("HUB_METRICS"); text {
	case "", "loopback":
		return false, nil
	case "all":
		return true, nil
	default:
		return false, fmt.Errorf("HUB_METRICS: %q is neither loopback nor all", text)
	}
}

// configure sets what variables alone say. All that is wrong with them is told at once.
func configure(config *api.Config) (connections int32, upkeepEvery time.Duration, err error) {
	var errs [9]error
	config.MaxBody, errs[0] = numberFromEnv("HUB_MAX_BODY", 16<<20, math.MaxInt64)
	config.MaxImport, errs[1] = numberFromEnv("HUB_MAX_IMPORT", 256<<20, math.MaxInt64)
	config.RequestTimeout, errs[2] = durationFromEnv("HUB_REQUEST_TIMEOUT", 30*time.Second)
	config.ImportTimeout, errs[3] = durationFromEnv("HUB_IMPORT_TIMEOUT", 10*time.Minute)
	config.MetricsOpen, errs[4] = metricsFromEnv()
	var pool, limit, rotation int64
	pool, errs[5] = numberFromEnv("HUB_DATABASE_CONNECTIONS", 16, 1000)
	limit, errs[6] = rateLimitFromEnv()
	rotation, errs[7] = numberFromEnv("HUB_ROTATION_RATE", 500, 1_000_000)
	upkeepEvery, errs[8] = durationFromEnv("HUB_UPKEEP_INTERVAL", time.Minute)
	config.RateLimit, config.RotationRate = int(limit), int(rotation)
	config.Transfers = max(1, int(pool)/2) // the rest is for everybody else
	return int32(pool), upkeepEvery, errors.Join(errs[:]...)
}

// dataDirFlag adds --data-dir. The function that it returns resolves the directory once flags are parsed: the flag's, the
// variable's, or .hub, or where a PostgreSQL of hub's own can live when its user cannot reach .hub.
func dataDirFlag(cmd *cobra.Command) func() (dir string, moved bool, err error) {
	flag := cmd.Flags().String("data-dir", "", "where hub keeps its data and the admin's key (HUB_DATA_DIR; default .hub)")
	return func() (string, bool, error) {
		dir, moved := *flag, false
		if dir == "" {
			dir = os.Getenv("HUB_DATA_DIR")
		}
		if dir == "" {
			dir = ".hub"
			if url, _ := databaseURLs(); url == "" {
				dir, moved = postgres.DefaultDataDir(dir)
			}
		}
		abs, err := filepath.Abs(dir)
		return abs, moved, err
	}
}

// databaseURLs are the application's login and the schema owner's, from the environment; empty without a database of one's own.
func databaseURLs() (app, owner string) {
	app = fromEnv("", "HUB_DATABASE_URL", "DATABASE_URL")
	return app, fromEnv(app, "HUB_MIGRATE_URL")
}
