package integration

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// threads counts the threads of a proxy.
func threads(t *testing.T, p *lab.Proxy) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestSilentPathsAtStart has paths that were bound be silent when the daemon starts
// anew without their mounts: others are served, and nobody holds more of its threads
// than one may.
func TestSilentPathsAtStart(t *testing.T) {
	p, _ := withHomes(t, "")
	var made []string
	for i := range 3 {
		made = append(made, filepath.Join(home(lab.Alice), fmt.Sprint(i)))
		name := fmt.Sprintf("asleep-%d", i)
		tidy(t, name)
		if out, err := p.Docker(limit(t), lab.Alice, "create", "--name", name, "-v", made[i]+":/d", lab.Image, "true"); err != nil {
			t.Fatal(out)
		}
	}
	tidy(t, "awake")
	if out, err := p.Docker(limit(t), lab.Bob, "create", "--name", "awake", "-v", home(lab.Bob)+":/d", lab.Image, "true"); err != nil {
		t.Fatal(out)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	lab.Unmount(p.Dir)
	var silent []*fuse
	for _, dir := range made {
		silent = append(silent, mountFuse(t, dir, true, 0, forAll, 0))
	}
	if err := p.Start(limit(t), []lab.Person{lab.Alice, lab.Bob}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for _, args := range [][]string{{"start", "-a", "awake"}, {"run", "--rm", "-v", home(lab.Bob) + ":/d", lab.Image, "true"}} {
		if out, err := p.Docker(limit(t), lab.Bob, args...); err != nil || time.Since(began) > answersWithin {
			t.Errorf("bob's %s after %v: %v: %s", args[0], time.Since(began), err, out)
		}
	}
	eventually(t, "the daemon is done with them", func() bool { return strings.Count(p.Log(), "in step with the Engine") == 2 })
	if took := time.Since(began); took > answersWithin {
		t.Errorf("the silent paths took %v", took)
	}
	before := threads(t, p)
	c := lab.HTTPClient(p.Socket(lab.Alice))
	defer c.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), answersWithin)
	defer cancel()
	for i, got := range atOnce(t, 60, func(i int) late {
		return patiently(ctx, c, fmt.Sprintf("/containers/asleep-%d/start", i%3), "")
	}) {
		if got.status != http.StatusForbidden && got.status != http.StatusTooManyRequests {
			t.Errorf("alice's start, %d: %d after %v: %s", i, got.status, got.took, got.body)
		}
	}
	if now := threads(t, p); now > before+24 {
		t.Errorf("the daemon has %d threads, and had %d", now, before)
	}
	for i, f := range silent {
		if err := f.abort(); err != nil {
			t.Error(err)
		}
		eventually(t, "alice's container starts", func() bool {
			_, err := p.Docker(limit(t), lab.Alice, "start", fmt.Sprintf("asleep-%d", i))
			return err == nil
		})
	}
}
