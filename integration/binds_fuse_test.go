package integration

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// forAll are the options of a file system that everybody may use, root too.
const forAll = "user_id=0,group_id=0,allow_other"

// answersWithin is how long the daemon may take about a path that does not answer.
const answersWithin = 15 * time.Second

// A late answer is one that took its time.
type late struct {
	answer
	took time.Duration
}

// createAt asks for a container that binds a path, read-only.
func createAt(t *testing.T, socket, name, source string) late {
	t.Helper()
	began := time.Now()
	got := ask(t, socket, "POST", "/containers/create?name="+name, `{"Image":"busybox:local","HostConfig":{"Binds":["`+source+`:/d:ro"]}}`)
	return late{got, time.Since(began)}
}

// atOnce asks for n containers at the same time.
func atOnce(t *testing.T, n int, one func(i int) late) []late {
	t.Helper()
	got := make([]late, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { got[i] = one(i) })
	}
	all.Wait()
	return got
}

// TestAPathThatNeverAnswers binds a path whose file system is silent, more often than
// one may, while others and the user do something else.
func TestAPathThatNeverAnswers(t *testing.T) {
	p, _ := withHomes(t, "")
	hung := filepath.Join(home(lab.Alice), "hung")
	f := mountFuse(t, hung, false, 0, forAll, 0)
	var names []string
	for i := range 12 {
		names = append(names, fmt.Sprintf("hung-%d", i))
	}
	tidy(t, append(names, "hung-raw", "hung-bob", "hung-plain")...)
	// The Engine itself waits for as long as it takes.
	raw := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	go func() {
		_, err := theEngine.Docker(ctx, "create", "--name", "hung-raw", "--mount", "type=bind,source="+hung+",target=/d", lab.Image)
		raw <- err
	}()
	others := make(chan string, 1)
	go func() {
		time.Sleep(2 * time.Second)
		for name, one := range map[string]struct {
			who  lab.Person
			bind string
		}{"hung-bob": {lab.Bob, home(lab.Bob) + ":/d"}, "hung-plain": {lab.Alice, "hung-volume:/d"}} {
			began := time.Now()
			if out, err := p.Docker(ctx, one.who, "run", "--rm", "--name", name, "-v", one.bind, lab.Image, "true"); err != nil || time.Since(began) > 8*time.Second {
				others <- fmt.Sprintf("%s: %v after %v: %s", name, err, time.Since(began), out)
				return
			}
		}
		others <- ""
	}()
	tidy(t, "hung-volume")
	refused, many := 0, 0
	for _, got := range atOnce(t, len(names), func(i int) late { return createAt(t, p.Socket(lab.Alice), names[i], hung) }) {
		switch {
		case got.status == http.StatusForbidden && strings.Contains(got.body, "rule bind-source") && strings.Contains(got.body, hung+": its file system does not answer within 10s") && got.took < answersWithin:
			refused++
		case got.status == http.StatusTooManyRequests && strings.Contains(got.body, "too many paths of yours are being opened") && got.took < 5*time.Second:
			many++
		default:
			t.Errorf("%d after %v: %s", got.status, got.took, got.body)
		}
	}
	if refused != 8 || many != 4 {
		t.Errorf("%d waited and %d were too many", refused, many)
	}
	if problem := <-others; problem != "" {
		t.Error(problem)
	}
	// The threads still wait; so do further paths.
	if got := createAt(t, p.Socket(lab.Alice), "hung-0", home(lab.Alice)); got.status != http.StatusTooManyRequests {
		t.Errorf("while all wait: %d %s", got.status, got.body)
	}
	select {
	case err := <-raw:
		t.Errorf("the Engine itself does not wait: %v", err)
	default:
	}
	if err := f.abort(); err != nil {
		t.Fatal(err)
	}
	<-raw
	eventually(t, "the paths are given back", func() bool {
		got := createAt(t, p.Socket(lab.Alice), "hung-0", home(lab.Alice))
		return got.status == http.StatusCreated
	})
	for i, got := range atOnce(t, 8, func(i int) late { return createAt(t, p.Socket(lab.Alice), names[i+1], home(lab.Alice)) }) {
		if got.status != http.StatusCreated {
			t.Errorf("the %dth of eight: %d %s", i+1, got.status, got.body)
		}
	}
}

// TestAPathThatFallsSilent binds paths whose file systems answer a few questions and
// then no more, wherever that is.
func TestAPathThatFallsSilent(t *testing.T) {
	p, _ := withHomes(t, "    map: [auto, none]\n")
	for _, owners := range []string{"", "none"} {
		var made []*fuse
		for i := range 7 {
			made = append(made, mountFuse(t, filepath.Join(home(lab.Alice), fmt.Sprintf("silent%s%d", owners, i)), true, i, forAll, unix.MS_NOSUID|unix.MS_NODEV))
		}
		created := 0
		for i, got := range atOnce(t, len(made), func(i int) late {
			name := fmt.Sprintf("silent-%d", i)
			c := lab.HTTPClient(p.Socket(lab.Alice))
			defer c.CloseIdleConnections()
			c.Timeout = 2 * answersWithin
			ctx, cancel := context.WithTimeout(context.Background(), c.Timeout)
			defer cancel()
			body := fmt.Sprintf(`{"Image":"busybox:local","Labels":{"ds01.bind.map":%q},"HostConfig":{"Binds":["%s:/d:ro"]}}`, map[string]string{"": "auto", "none": "none"}[owners], made[i].dir)
			return patiently(ctx, c, "/containers/create?name="+name, body)
		}) {
			switch {
			case got.status == http.StatusCreated:
				created++
			case got.took > answersWithin || got.status != http.StatusForbidden || !strings.Contains(got.body, "rule bind-"):
				t.Errorf("after %d answers, with the map %q: %d after %v: %s", i, owners, got.status, got.took, got.body)
			}
		}
		t.Logf("with the map %q %d of %d were made", owners, created, len(made))
		for i, f := range made {
			if err := f.abort(); err != nil {
				t.Error(err)
			}
			_, _ = theEngine.Docker(limit(t), "rm", "-f", fmt.Sprintf("silent-%d", i))
		}
	}
}

// patiently sends a POST and waits for as long as ctx lasts.
func patiently(ctx context.Context, c *http.Client, target, body string) late {
	began := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://docker"+target, strings.NewReader(body))
	if err != nil {
		return late{answer{body: err.Error()}, 0}
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return late{answer{body: err.Error()}, time.Since(began)}
	}
	defer resp.Body.Close()
	text := make([]byte, 4096)
	n, _ := resp.Body.Read(text)
	return late{answer{resp.StatusCode, resp.Header, string(text[:n])}, time.Since(began)}
}

// TestFileSystemsOfUsers binds file systems of users' own that answer.
func TestFileSystemsOfUsers(t *testing.T) {
	p, _ := withHomes(t, "")
	const read = "stat -c %u:%g /d; cat /d/file"
	own := fmt.Sprintf("%d:%d\n", lab.Alice.UID, lab.Alice.UID)
	for _, c := range []struct {
		name, options string
		mapped        bool
		// raw is what the Engine itself gives, user what a user gets; a refusal where ok is
		// false.
		raw, user string
		ok        bool
	}{
		{"unmapped", forAll, false, own + fuseText, "cannot map owners", false},
		{"mapped", forAll, true, own + fuseText, "0:0\n" + fuseText, true},
		{"private", fmt.Sprintf("user_id=%d,group_id=%d", lab.Alice.UID, lab.Alice.UID), false, "", "you may not", false},
	} {
		f := mountFuse(t, filepath.Join(home(lab.Alice), c.name), c.mapped, -1, c.options, 0)
		if text, err := onHost(t, "cat", filepath.Join(f.dir, "file")); err != nil || text != fuseText {
			t.Errorf("%s, on the host: %q, %v", c.name, text, err)
		}
		raw, err := theEngine.Docker(limit(t), "run", "--rm", "-v", f.dir+":/d", lab.Image, "sh", "-c", read)
		if (err == nil) != (c.raw != "") || !strings.HasPrefix(raw, c.raw) {
			t.Errorf("%s, on the Engine itself: %q, %v", c.name, raw, err)
		}
		out, ok := runs(t, p, "-v", f.dir+":/d", lab.Image, "sh", "-c", read)
		t.Logf("%s: %s", c.name, out)
		if ok != c.ok || !strings.Contains(out, c.user) || !ok && !strings.Contains(out, "rule bind-source") {
			t.Errorf("%s: %t: %s", c.name, ok, out)
		}
		if err := f.abort(); err != nil {
			t.Error(err)
		}
	}
}
