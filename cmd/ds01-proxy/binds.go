package main

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01-proxy/proxy/binds"
)

// newHold is what a process runs whose user namespace the daemon wants.
func newHold() *cobra.Command {
	return &cobra.Command{
		Use:     binds.PauseCommand,
		Short:   "Wait for the end of standard input (the daemon's own use)",
		Example: "  ds01-proxy " + binds.PauseCommand + " </dev/null",
		Hidden:  true,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := io.Copy(io.Discard, cmd.InOrStdin())
			return err
		},
	}
}

func newBinds() *cobra.Command {
	var (
		flags  configFlags
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "binds",
		Short: "List the host paths that are staged for containers",
		Long: `Lists the paths of the host that users have bound into containers: where each is
staged, for whom, and whether it is mounted.`,
		Example: `  ds01-proxy binds
  ds01-proxy binds --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := flags.load(cmd)
			if err != nil {
				return err
			}
			if err := requireRoot("binds"); err != nil {
				return err
			}
			stage, err := binds.OpenStage(c.stagePath(), c.bindsPath(), time.Now)
			if err != nil {
				return err
			}
			return printBinds(cmd.OutOrStdout(), stage, asJSON)
		},
	}
	flags.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// stagePath is the staging directory, and bindsPath the file that remembers what is
// in it.
func (c *config) stagePath() string { return filepath.Join(c.RunDir, "binds") }
func (c *config) bindsPath() string { return filepath.Join(c.StateDir, "binds.json") }

func printBinds(out io.Writer, stage *binds.Stage, asJSON bool) error {
	all := stage.All()
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(all)
	}
	t := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "USER\tSOURCE\tMODE\tINSIDE\tMOUNTED\tCONTAINERS\tSTAGED AT")
	for _, b := range all {
		mode, inside := "rw", "unmapped"
		if b.ReadOnly {
			mode = "ro"
		}
		if b.Map != nil {
			inside = fmt.Sprintf("%d:%d", b.Map.ToUID, b.Map.ToGID)
		}
		mounted, err := stage.Mounted(b.Token)
		if err != nil {
			return err
		}
		var short []string
		for _, id := range b.Containers {
			short = append(short, fmt.Sprintf("%.12s", id))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%t\t%s\t%s\n", b.User, b.Source, mode, inside, mounted, strings.Join(short, ","), stage.Path(b.Token))
	}
	return t.Flush()
}
