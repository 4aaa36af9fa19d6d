// Command bench compares a user's socket with the Engine's own: the same
// requests on both, taking turns in one run, so that a machine that speeds up or
// slows down does so for both. What counts is the ratio.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/ds01/ds01-proxy/integration/lab"
)

func main() {
	binary := flag.String("binary", "bin/ds01-proxy", "the ds01-proxy to measure")
	rounds := flag.Int("rounds", 1000, "requests of each kind on each socket")
	asJSON := flag.Bool("json", false, "print JSON")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *binary, *rounds, *asJSON); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// A result is one line of the table; times are in microseconds.
type result struct {
	Request string  `json:"request"`
	Conn    string  `json:"connection"`
	Rounds  int     `json:"rounds"`
	RawP50  float64 `json:"raw_p50_us"`
	ViaP50  float64 `json:"proxy_p50_us"`
	Ratio   float64 `json:"ratio_p50"`
	Ratio99 float64 `json:"ratio_p99"`
}

func run(ctx context.Context, binary string, rounds int, asJSON bool) (err error) {
	if binary, err = filepath.Abs(binary); err != nil {
		return err
	}
	scratch, err := lab.NewScratch()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, scratch.Close()) }()
	fmt.Fprintln(os.Stderr, "starting a private Docker Engine …")
	e, err := scratch.Engine(ctx)
	if err != nil {
		return err
	}
	proxyDir, err := scratch.Make("p", 0o755)
	if err != nil {
		return err
	}
	p, err := lab.StartProxy(ctx, binary, proxyDir, e.Socket, []lab.Person{lab.Alice})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	id, err := p.Docker(ctx, lab.Alice, "create", "--name", "one", lab.Image, "true")
	if err != nil {
		return fmt.Errorf("%w: %s", err, id)
	}
	id = strings.TrimSpace(id)
	for i := range 50 {
		if out, err := p.Docker(ctx, lab.Alice, "create", "--name", fmt.Sprintf("c%d", i), lab.Image, "true"); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	var results []result
	for _, kind := range []struct {
		name, text string
		rounds     int
	}{
		{"ping", "GET /_ping", rounds},
		{"inspect by ID", "GET /containers/" + id + "/json", rounds},
		{"inspect by name", "GET /containers/one/json", rounds},
		{"list of 51", "GET /containers/json?all=1", rounds / 5},
	} {
		for _, fresh := range []bool{false, true} {
			fmt.Fprintf(os.Stderr, "%s, %s …\n", kind.name, connName(fresh))
			r, err := compare(ctx, e.Socket, p.Socket(lab.Alice), kind.text+" HTTP/1.1\r\nHost: d\r\n\r\n", kind.rounds, fresh)
			if err != nil {
				return fmt.Errorf("%s: %w", kind.name, err)
			}
			r.Request = kind.name
			results = append(results, r)
		}
	}
	if asJSON {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(results)
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "REQUEST\tCONNECTION\tROUNDS\tRAW p50 µs\tPROXY p50 µs\tRATIO p50\tRATIO p99\t")
	for _, r := range results {
		fmt.Fprintf(t, "%s\t%s\t%d\t%.0f\t%.0f\t%.2f\t%.2f\t\n", r.Request, r.Conn, r.Rounds, r.RawP50, r.ViaP50, r.Ratio, r.Ratio99)
	}
	return t.Flush()
}

func connName(fresh bool) string {
	if fresh {
		return "new each"
	}
	return "kept"
}

// A side is one of the two sockets.
type side struct {
	socket string
	conn   net.Conn
	br     *bufio.Reader
	times  []time.Duration
}

// once sends the request and reads the whole answer.
func (s *side) once(text string, fresh bool) error {
	began := time.Now()
	if s.conn == nil || fresh {
		if s.conn != nil {
			s.conn.Close()
		}
		c, err := net.Dial("unix", s.socket)
		if err != nil {
			return err
		}
		s.conn, s.br = c, bufio.NewReader(c)
	}
	if _, err := io.WriteString(s.conn, text); err != nil {
		return err
	}
	resp, err := http.ReadResponse(s.br, nil)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", resp.Status)
	}
	s.times = append(s.times, time.Since(began))
	return nil
}

// compare lets the two sockets take turns.
func compare(ctx context.Context, raw, via, text string, rounds int, fresh bool) (result, error) {
	sides := [2]*side{{socket: raw}, {socket: via}}
	defer func() {
		for _, s := range sides {
			if s.conn != nil {
				s.conn.Close()
			}
		}
	}()
	warmup := rounds / 10
	for i := range rounds + warmup {
		if ctx.Err() != nil {
			return result{}, ctx.Err()
		}
		for _, s := range sides {
			if err := s.once(text, fresh); err != nil {
				return result{}, err
			}
			if i < warmup {
				s.times = s.times[:0]
			}
		}
	}
	for _, s := range sides {
		slices.Sort(s.times)
	}
	at := func(s *side, q float64) float64 {
		return float64(s.times[int(q*float64(len(s.times)-1))].Nanoseconds()) / 1000
	}
	return result{
		Conn: connName(fresh), Rounds: rounds, RawP50: at(sides[0], 0.5), ViaP50: at(sides[1], 0.5),
		Ratio: at(sides[1], 0.5) / at(sides[0], 0.5), Ratio99: at(sides[1], 0.99) / at(sides[0], 0.99),
	}, nil
}
