package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01-proxy/proxy/users"
)

// version is set by the linker.
var version = "dev"

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "ds01-proxy",
		Short: "Gives every user of a server a Docker socket of their own",
		Long: `ds01-proxy stands between the users of one Linux server and its Docker Engine.
Each user gets a Unix socket that speaks the Docker API and shows and reaches
only what is theirs.`,
		Example: `  ds01-proxy serve
  ds01-proxy check-config
  ds01-proxy users`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
	}
	root.AddCommand(newServe(), newCheckConfig(), newUsers(), newLimits(), newBinds(), newHold(), newVersion())
	return root
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  ds01-proxy version",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "ds01-proxy", version)
			return err
		},
	}
}

// configFlags are the flags that several subcommands share; they override the
// file.
type configFlags struct {
	path     string
	engine   string
	runDir   string
	stateDir string
	users    []string
}

func (f *configFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.path, "config", defaultConfigPath, "configuration file; the default one need not exist")
	flags.StringVar(&f.engine, "engine", "", "the Engine's socket, as unix:///path")
	flags.StringVar(&f.runDir, "run-dir", "", "directory of the sockets")
	flags.StringVar(&f.stateDir, "state-dir", "", "directory of what is kept over restarts")
	flags.StringArrayVar(&f.users, "user", nil, "serve only this user, as NAME, or as NAME:UID for one without an account; may be repeated")
}

// load reads the configuration and applies the flags.
func (f *configFlags) load(cmd *cobra.Command) (*config, error) {
	c, err := loadConfig(f.path, cmd.Flags().Changed("config"))
	if err != nil {
		return nil, err
	}
	if f.engine != "" {
		c.Engine = f.engine
	}
	for _, d := range []struct {
		flag string
		to   *string
	}{{f.runDir, &c.RunDir}, {f.stateDir, &c.StateDir}} {
		if d.flag != "" {
			if *d.to, err = filepath.Abs(d.flag); err != nil {
				return nil, fmt.Errorf("directory %s: %w", d.flag, err)
			}
		}
	}
	// Named directories keep everything inside them.
	if f.runDir != "" && c.sharedPath() != "" {
		c.SharedSocket = nil
	}
	if f.stateDir != "" {
		c.AuditLog = ""
	}
	for _, text := range f.users {
		a, err := parseUser(text)
		if err != nil {
			return nil, err
		}
		c.only = append(c.only, a)
	}
	if found := c.validate(&emptyFile); len(found) > 0 {
		return nil, found
	}
	return c, nil
}

// parseUser reads the value of --user.
func parseUser(text string) (users.Account, error) {
	name, id, numbered := strings.Cut(text, ":")
	if !numbered {
		a, err := new(users.NSS).ByName(name)
		if err != nil {
			return a, fmt.Errorf("--user %s: %w; use NAME:UID for one without an account", text, err)
		}
		if a.UID == 0 {
			return a, fmt.Errorf("--user %s: uid 0 needs no socket; it has the Engine's own", text)
		}
		return a, nil
	}
	uid, err := strconv.ParseUint(id, 10, 32)
	if err != nil || uid == 0 || uid == math.MaxUint32 || name == "" || strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".") {
		return users.Account{}, fmt.Errorf("--user %s: not NAME:UID with a name that can be a file's and a uid from 1 to %d", text, uint32(math.MaxUint32-1))
	}
	return users.Account{Name: name, UID: uint32(uid), GID: uint32(uid), Shell: "/bin/sh"}, nil
}

// requireRoot explains why a subcommand cannot run.
func requireRoot(what string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s needs root: it gives sockets to users and reads the Engine's own; try sudo", what)
	}
	return nil
}
