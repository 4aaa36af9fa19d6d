package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/ds01/ds01-proxy/proxy"
	"github.com/ds01/ds01-proxy/proxy/limits"
	"github.com/ds01/ds01-proxy/proxy/users"
)

// userRow is a line of the table of users.
type userRow struct {
	User   string `json:"user"`
	UID    uint32 `json:"uid"`
	Group  string `json:"group"`
	Mode   string `json:"mode"`
	Admin  bool   `json:"admin"`
	Socket string `json:"socket"`
}

func newUsers() *cobra.Command {
	var (
		flags  configFlags
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "users",
		Short: "List who is served, and on which socket",
		Long: `Lists the users who get a socket of their own under the configuration as it is
now. Users whom NSS cannot enumerate are served on the shared socket and are not
listed.`,
		Example: `  ds01-proxy users
  ds01-proxy users --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := flags.load(cmd)
			if err != nil {
				return err
			}
			l, err := limits.Open(c.LimitsFile, zap.NewNop())
			if err != nil {
				return err
			}
			d := users.NewDirectory(new(users.NSS), time.Now)
			if err := d.Refresh(c.rules(l)); err != nil {
				return err
			}
			rows, err := userRows(d, c.RunDir)
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(rows)
			}
			return printUsers(cmd.OutOrStdout(), rows)
		},
	}
	flags.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func userRows(d *users.Directory, runDir string) ([]userRow, error) {
	rows := []userRow{}
	for _, a := range d.Listed() {
		s, err := d.ByUID(a.UID)
		if err != nil {
			return nil, err
		}
		rows = append(rows, userRow{
			User: s.User, UID: s.UID, Group: s.Group, Mode: s.Mode.String(), Admin: s.Admin,
			Socket: proxy.UserSocket(runDir, s.User),
		})
	}
	return rows, nil
}

func printUsers(w io.Writer, rows []userRow) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "USER\tUID\tGROUP\tENFORCEMENT\tSOCKET")
	for _, r := range rows {
		mode := r.Mode
		if r.Admin {
			mode = "none (admin)"
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\n", r.User, r.UID, r.Group, mode, r.Socket)
	}
	return t.Flush()
}
