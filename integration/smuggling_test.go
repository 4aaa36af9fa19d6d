package integration

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// A smuggling is what two parsers could split differently, and what must come of
// it: the answers that alice gets, and the requests that the Engine gets.
type smuggling struct{ name, text, answers, arrivals string }

// smugglings reads the table of the proxy's own test, which says what its form is.
func smugglings(t *testing.T) []smuggling {
	t.Helper()
	file, err := os.ReadFile("../proxy/testdata/smuggling.txt")
	if err != nil {
		t.Fatal(err)
	}
	unescape := strings.NewReplacer(`\r`, "\r", `\n`, "\n", `\t`, "\t", `\0`, "\x00", `\x0b`, "\x0b")
	var all []smuggling
	for part := range strings.SplitSeq(strings.TrimPrefix(string(file), "== "), "\n== ") {
		head, tail, _ := strings.Cut(part, "\n-- ")
		name, lines, _ := strings.Cut(head, "\n")
		answers, arrivals, _ := strings.Cut(tail, "\n")
		all = append(all, smuggling{name, unescape.Replace(strings.ReplaceAll(lines, "\n", "")), answers, strings.TrimSpace(arrivals)})
	}
	if len(all) < 80 {
		t.Fatalf("only %d cases", len(all))
	}
	return all
}

// TestWhatIsAllowedIsWhatTheEngineServes sends each smuggling to alice's socket on
// one connection. The Engine's log must show the requests that are allowed and no
// others, and what they made must be alice's.
func TestWhatIsAllowedIsWhatTheEngineServes(t *testing.T) {
	alices := container(t, lab.Alice, "alices")
	bobs := container(t, lab.Bob, "bobs")
	t.Cleanup(func() { removeAllBut(t, alices, bobs) })
	log := newLogReader(t)
	before := look(t, bobs)
	made := 0
	for _, c := range smugglings(t) {
		t.Run(c.name, func(t *testing.T) {
			log.calls(t)
			if got := exchanges(t, theProxy.Socket(lab.Alice), c.text); got != c.answers {
				t.Errorf("answered %s, want %s", got, c.answers)
			}
			var got []string
			for _, call := range log.forwarded(t) {
				got = append(got, call.method+" "+plain(t, call.template, alices))
			}
			if strings.Join(got, "\n") != c.arrivals {
				t.Errorf("the Engine served:\n%s\nwant:\n%s", strings.Join(got, "\n"), c.arrivals)
			}
			made += strings.Count(c.answers, "201")
		})
	}
	if after := look(t, bobs); after != before {
		t.Errorf("bob's container changed:\n%s\n%s", before, after)
	}
	ids := strings.Fields(admin(t, "ps", "-aq", "--no-trunc"))
	owners := admin(t, append([]string{"inspect", "--format", `{{index .Config.Labels "ds01.user"}}`}, ids...)...)
	if hers, his := strings.Count(owners, "alice"), strings.Count(owners, "bob"); hers != made+1 || his != 1 || len(ids) != made+2 {
		t.Errorf("%d containers, %d of alice and %d of bob; %d were created", len(ids), hers, his, made)
	}
}

// TestSmugglingIsAnsweredAsByTheEngine wants the same answers on alice's socket as
// on the Engine's own wherever nothing is refused.
func TestSmugglingIsAnsweredAsByTheEngine(t *testing.T) {
	alices := container(t, lab.Alice, "alices")
	t.Cleanup(func() { removeAllBut(t, alices) })
	compared := 0
	for _, c := range smugglings(t) {
		if strings.Contains(c.answers, "4") || strings.Contains(c.text, "bobs") {
			continue
		}
		compared++
		if got := exchanges(t, theEngine.Socket, c.text); got != c.answers {
			t.Errorf("%s: the Engine's own socket answers %s, alice's %s", c.name, got, c.answers)
		}
	}
	if compared < 25 {
		t.Errorf("only %d were compared", compared)
	}
}

// plain is a forwarded path without its version and with the name in place of the
// ID.
func plain(t *testing.T, target, id string) string {
	t.Helper()
	u, err := url.ParseRequestURI(target)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Replace("/"+strings.SplitN(u.Path, "/", 3)[2], id, "alices", 1)
}

// removeAllBut removes every other container.
func removeAllBut(t *testing.T, kept ...string) {
	t.Helper()
	out, err := theEngine.Docker(context.Background(), "ps", "-aq", "--no-trunc")
	others := slices.DeleteFunc(strings.Fields(out), func(id string) bool { return slices.Contains(kept, id) })
	if err == nil && len(others) > 0 {
		_, err = theEngine.Docker(context.Background(), append([]string{"rm", "-f"}, others...)...)
	}
	if err != nil {
		t.Error(err)
	}
}

// exchanges sends text and returns the status of every answer until the connection
// ends.
func exchanges(t *testing.T, socket, text string) string {
	t.Helper()
	c, br := open(t, socket, text)
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var all []string
	for {
		if _, err := br.Peek(1); err == io.EOF {
			return strings.Join(all, " ")
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("after %v: %v", all, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatalf("after %v: %v", all, err)
		}
		all = append(all, fmt.Sprint(resp.StatusCode))
	}
}
