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
	gatedDir, err := scratch.Make("q", 0o755)
	if err != nil {
		return err
	}
	conf, err := limited(gatedDir)
	if err != nil {
		return err
	}
	gated, err := lab.StartProxy(ctx, binary, gatedDir, e.Socket, []lab.Person{lab.Bob}, "--config", conf)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, gated.Stop()) }()
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
	fmt.Fprintln(os.Stderr, "create, without limits and with …")
	made, err := creates(ctx, e.Socket, p.Socket(lab.Alice), gated.Socket(lab.Bob), max(1, rounds/5))
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	results = append(results, made...)
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

// limited writes a configuration with limits that nothing here meets, for users who are
// in a group of their own, and returns its path.
func limited(dir string) (string, error) {
	limits, conf := filepath.Join(dir, "limits.yaml"), filepath.Join(dir, "config.yaml")
	const text = "default_group: bench\ngroups:\n  bench: {memory: 64m, memory_swap: 64m, max_cpus: 1, pids_limit: 100, shm_size: 16m, max_containers_per_user: 100000, " +
		"aggregate: {memory_max: 1000g, cpu_quota: 100000%, tasks_max: 100000}}\n"
	return conf, errors.Join(os.WriteFile(limits, []byte(text), 0o600), os.WriteFile(conf, []byte("limits_file: "+limits+"\n"), 0o600))
}

// creates makes containers on three sockets in turn, and removes each before the next:
// the Engine's own, and those of users without and with limits.
func creates(ctx context.Context, raw, free, held string, rounds int) ([]result, error) {
	const body = `{"Image":"` + lab.Image + `","Cmd":["true"],"HostConfig":{"Memory":33554432}}`
	text := fmt.Sprintf("POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	sides := []*side{{socket: raw}, {socket: free}, {socket: held}}
	remove := &side{socket: raw}
	defer func() {
		for _, s := range append(sides, remove) {
			if s.conn != nil {
				s.conn.Close()
			}
		}
	}()
	warmup := max(1, rounds/10)
	for i := range rounds + warmup {
		// Who is first pays for what the removal before left to do.
		for n := range sides {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			s := sides[(i+n)%len(sides)]
			answer, err := s.send(text, false, http.StatusCreated)
			if err != nil {
				return nil, err
			}
			var made struct{ ID string }
			if err := json.Unmarshal(answer, &made); err != nil {
				return nil, err
			}
			if _, err := remove.send("DELETE /containers/"+made.ID+" HTTP/1.1\r\nHost: d\r\n\r\n", false, http.StatusNoContent); err != nil {
				return nil, err
			}
		}
		if i < warmup {
			for _, s := range sides {
				s.times = s.times[:0]
			}
		}
	}
	var out []result
	for _, pair := range []struct {
		name string
		a, b *side
	}{{"create, no limits", sides[0], sides[1]}, {"create, limits", sides[0], sides[2]}, {"limits to none", sides[1], sides[2]}} {
		r := ratio(pair.a, pair.b)
		r.Request, r.Conn, r.Rounds = pair.name, connName(false), rounds
		out = append(out, r)
	}
	return out, nil
}

// once sends the request and wants 200.
func (s *side) once(text string, fresh bool) error {
	_, err := s.send(text, fresh, http.StatusOK)
	return err
}

// send sends the request and reads the whole answer.
func (s *side) send(text string, fresh bool, status int) ([]byte, error) {
	began := time.Now()
	if s.conn == nil || fresh {
		if s.conn != nil {
			s.conn.Close()
		}
		c, err := net.Dial("unix", s.socket)
		if err != nil {
			return nil, err
		}
		s.conn, s.br = c, bufio.NewReader(c)
	}
	if _, err := io.WriteString(s.conn, text); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(s.br, nil)
	if err != nil {
		return nil, err
	}
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != status {
		return nil, fmt.Errorf("status %s: %s", resp.Status, answer)
	}
	s.times = append(s.times, time.Since(began))
	return answer, nil
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
	r := ratio(sides[0], sides[1])
	r.Conn, r.Rounds = connName(fresh), rounds
	return r, nil
}

// ratio compares the times of two sides.
func ratio(raw, via *side) result {
	at := func(s *side, q float64) float64 {
		sorted := slices.Sorted(slices.Values(s.times))
		return float64(sorted[int(q*float64(len(sorted)-1))].Nanoseconds()) / 1000
	}
	return result{
		RawP50: at(raw, 0.5), ViaP50: at(via, 0.5),
		Ratio: at(via, 0.5) / at(raw, 0.5), Ratio99: at(via, 0.99) / at(raw, 0.99),
	}
}
