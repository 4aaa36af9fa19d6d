package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
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
		Long: `Reads the configuration and the limits file and reports every problem with its
place. Nothing is dialled and nothing is written.`,
		Example: `  ds01-proxy check-config
  ds01-proxy check-config --config /etc/ds01-proxy/config.yaml --print
  ds01-proxy check-config --explain alice`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := flags.load(cmd)
			if err != nil {
				return err
			}
			g, err := readGroups(c.LimitsFile)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if explain != "" {
				return c.explain(out, explain, g.of(explain))
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
