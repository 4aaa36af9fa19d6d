package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy"
)

// checkLimits is the name by which users know ds01-proxy limits: a link to the binary.
const checkLimits = "check-limits"

func newLimits() *cobra.Command {
	var (
		flags  configFlags
		socket string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "limits [USER]",
		Short: "Show what you use of this machine, and what you may use",
		Long: `Shows what a user's containers take of the machine, what they were promised, what the
limits are, and why something was refused last. Users ask about themselves, through their own
socket; root asks about anybody.`,
		Example: `  ds01-proxy limits
  ds01-proxy limits --json
  sudo ds01-proxy limits alice`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			who := ""
			if len(args) > 0 {
				who = args[0]
			}
			if socket == "" {
				var err error
				if socket, err = limitsSocket(cmd, &flags, who); err != nil {
					return err
				}
			}
			text, err := askLimits(cmd.Context(), socket, who)
			if err != nil {
				return err
			}
			if asJSON {
				_, err := cmd.OutOrStdout().Write(text)
				return err
			}
			var r proxy.Report
			if err := json.Unmarshal(text, &r); err != nil {
				return fmt.Errorf("answer of the server: %w", err)
			}
			return printLimits(cmd.OutOrStdout(), &r)
		},
	}
	flags.register(cmd)
	cmd.Flags().StringVar(&socket, "socket", "", "the socket to ask; not set means DOCKER_HOST, or your own below <run_dir>")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// limitsSocket is where to ask.
func limitsSocket(cmd *cobra.Command, flags *configFlags, who string) (string, error) {
	host, named := strings.CutPrefix(os.Getenv("DOCKER_HOST"), "unix://")
	if named && os.Geteuid() != 0 {
		return host, nil
	}
	c, err := flags.load(cmd)
	if errors.Is(err, fs.ErrPermission) {
		// The configuration is root's; sockets are where they usually are.
		c, err = parseConfig("(built-in default)", nil)
	}
	if err != nil {
		return "", err
	}
	if os.Geteuid() == 0 {
		if who == "" {
			return "", fmt.Errorf("root has no limits: name a user, as in %s limits alice", cmd.Root().Name())
		}
		if c.sharedPath() == "" {
			return proxy.UserSocket(c.RunDir, who), nil
		}
		return c.sharedPath(), nil
	}
	me, err := user.Current()
	if err != nil {
		return "", fmt.Errorf("cannot tell who you are: %w", err)
	}
	return proxy.UserSocket(c.RunDir, me.Username), nil
}

// askLimits asks over a socket.
func askLimits(ctx context.Context, socket, who string) ([]byte, error) {
	target := "http://ds01/_ds01/limits"
	if who != "" {
		target += "?user=" + url.QueryEscape(who)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "unix", socket)
	}}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w; is ds01-proxy running, and DOCKER_HOST your own socket?", socket, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", socket, err)
	}
	if resp.StatusCode != http.StatusOK {
		var e struct{ Message string }
		if json.Unmarshal(text, &e) != nil || e.Message == "" {
			e.Message = resp.Status
		}
		return nil, fmt.Errorf("%s says: %s", socket, e.Message)
	}
	return text, nil
}

// printLimits writes the table.
func printLimits(out io.Writer, r *proxy.Report) error {
	who := r.User + " (group " + r.Group + ")"
	if r.Admin {
		who = r.User + " (admin: nothing is held against these limits)"
	}
	fmt.Fprintln(out, who)
	fmt.Fprintln(out)
	t := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	m := r.Memory
	fmt.Fprintf(t, "MEMORY\t%s\t%s of %s\n", bar(float64(m.Used), number(m.Limit)), policy.Bytes(m.Used), bytesOf(m.Limit))
	detail := "page cache beside it " + policy.Bytes(m.Cache) + ", promised to containers not at work yet " + policy.Bytes(m.Pending) + ", limits of all containers " + policy.Bytes(m.Committed)
	if r.Accounting == "committed" {
		detail += " (this counts here)"
	}
	if m.High != nil {
		detail += ", slowed down above " + policy.Bytes(*m.High)
	}
	fmt.Fprintf(t, "\t\t%s\n", detail)
	fmt.Fprintf(t, "PIDS\t%s\t%d of %s\n", bar(float64(*r.PIDs.Used), r.PIDs.Limit), *r.PIDs.Used, plain(r.PIDs.Limit))
	fmt.Fprintf(t, "CPUS\t\tup to %s\n", plain(r.CPUs.Limit))
	held := ""
	if len(r.GPUs.Holders) > 0 {
		held = ": " + strings.Join(r.GPUs.Holders, ", ")
	}
	fmt.Fprintf(t, "GPUS\t%s\t%g of %s%s\n", bar(r.GPUs.Held, r.GPUs.Limit), r.GPUs.Held, plain(r.GPUs.Limit), held)
	var containers *float64
	if r.Containers.Limit != nil {
		containers = floatOf(*r.Containers.Limit)
	}
	fmt.Fprintf(t, "CONTAINERS\t%s\t%d of %s (%d running)\n", bar(float64(r.Containers.All), containers), r.Containers.All, plain(containers), r.Containers.Running)
	if err := t.Flush(); err != nil {
		return err
	}
	e := r.Each
	var gpus, pids *float64
	if e.GPUs != nil {
		gpus = floatOf(*e.GPUs)
	}
	if e.PIDs != nil {
		pids = floatOf(*e.PIDs)
	}
	fmt.Fprintf(out, "\nOne container: memory %s, with swap %s, shared memory %s, CPUs %s, processes %s, GPUs %s\n",
		bytesOf(e.Memory), bytesOf(e.MemorySwap), bytesOf(e.ShmSize), plain(e.CPUs), plain(pids), plain(gpus))
	if r.Unread != "" {
		fmt.Fprintln(out, "\nWhat is used cannot be read: "+r.Unread)
	}
	if r.Refused != nil {
		fmt.Fprintf(out, "\nLast refusal, %s:\n%s\n", r.Refused.At.Local().Format(time.DateTime), r.Refused.Reason)
	}
	return nil
}

func floatOf[T int | int64](n T) *float64 {
	f := float64(n)
	return &f
}

func number(n *int64) *float64 {
	if n == nil {
		return nil
	}
	return floatOf(*n)
}

func bytesOf(n *int64) string {
	if n == nil {
		return "no limit"
	}
	return policy.Bytes(*n)
}

func plain(f *float64) string {
	if f == nil {
		return "no limit"
	}
	return strconv.FormatFloat(*f, 'f', -1, 64)
}

// barWidth is in characters.
const barWidth = 20

// bar draws a share of a limit; nothing without one.
func bar(used float64, limit *float64) string {
	if limit == nil || *limit <= 0 {
		return ""
	}
	share := min(max(used / *limit, 0), 1)
	full := int(share*barWidth + 0.5)
	return fmt.Sprintf("[%s%s] %3.0f%%", strings.Repeat("#", full), strings.Repeat("-", barWidth-full), 100*used / *limit)
}

// asChecked puts the subcommand before the arguments where the binary is called by the
// name of a tool that it stands for.
func asChecked(args []string) []string {
	if len(args) > 0 && filepath.Base(args[0]) == checkLimits {
		return append([]string{"limits"}, args[1:]...)
	}
	return args[1:]
}
