package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.yaml.in/yaml/v3"

	"github.com/ds01/ds01-proxy/proxy/limits"
	"github.com/ds01/ds01-proxy/proxy/users"
)

// emptyFile stands for a file without lines to point at.
var emptyFile yaml.Node

func newCheckConfig() *cobra.Command {
	var (
		flags   configFlags
		print   bool
		explain string
	)
	cmd := &cobra.Command{
		Use:   "check-config",
		Short: "Check the configuration without touching anything",
		Long: `Reads the configuration, the limits file and what stands beside it, and reports
every problem with its place. Keys of the limits file that are not read are noted
on standard error: they are other tools', or mistakes. Nothing is dialled and
nothing is written.`,
		Example: `  ds01-proxy check-config
  ds01-proxy check-config --config /etc/ds01-proxy/config.yaml --print
  ds01-proxy check-config --explain alice`,
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
			for _, n := range l.Notes() {
				fmt.Fprintln(cmd.ErrOrStderr(), "note:", n)
			}
			out := cmd.OutOrStdout()
			if explain != "" {
				group, err := groupOf(l, new(users.NSS), explain)
				if err != nil {
					return err
				}
				return c.explain(out, explain, group, l)
			}
			if print {
				text, err := yaml.Marshal(c)
				if err != nil {
					return fmt.Errorf("print configuration: %w", err)
				}
				_, err = out.Write(text)
				return err
			}
			_, err = fmt.Fprintln(out, "configuration is valid")
			return err
		},
	}
	flags.register(cmd)
	cmd.Flags().StringVar(&explain, "explain", "", "print what `USER` may do and where each line comes from")
	cmd.Flags().BoolVar(&print, "print", false, "print the configuration that holds, defaults and flags included")
	return cmd
}

// groupOf is the limits group of a user; who has no account is in no group of the system.
func groupOf(l *limits.Store, accounts users.Finder, user string) (string, error) {
	return l.GroupOf(user, func(groups []string) (bool, error) {
		a, err := accounts.ByName(user)
		if errors.Is(err, users.ErrUnknown) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		return accounts.InAnyGroup(a, groups)
	})
}
