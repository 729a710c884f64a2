// Command hub is the server and its tools. Run `hub help`.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set at build time (-ldflags "-X main.version=...").
var version = ""

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends hub at once
	if err := rootCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "hub:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "hub",
		Short:         "The central store and coordinator for fleets of AI coding agents",
		Version:       programVersion(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(serveCommand(), importCommand(), rolesCommand(), tasksCommand(), keysCommand(), spokeCommand(), adminCommand(), migrateCommand())
	return root
}

// showHelp is what a command does that only groups others; with cobra.NoArgs it refuses what is none of them.
func showHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }

func programVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "development"
}
