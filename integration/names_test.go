package integration

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// TestATakenNameLeadsOn has alice want names that bob's containers have.
func TestATakenNameLeadsOn(t *testing.T) {
	bobs := container(t, lab.Bob, "taken-bob")
	container(t, lab.Alice, "taken-alice")
	for _, args := range [][]string{{"create", "--name", "taken-bob", lab.Image}, {"rename", "taken-alice", "taken-bob"}} {
		out, err := theProxy.Docker(limit(t), lab.Alice, args...)
		if err == nil || !strings.Contains(out, `"/taken-bob" is already in use by a container that is not yours. Choose another name`) || strings.Contains(out, bobs) {
			t.Errorf("docker %v: %v: %s", args, err, out)
		}
	}
	// One's own is named as ever.
	refused(t, lab.Alice, "You have to remove (or rename) that container", "create", "--name", "taken-alice", lab.Image)
}

// TestTwoUsersOfOneProjectName has both run one compose file under one project
// name: what they are told leads on.
func TestTwoUsersOfOneProjectName(t *testing.T) {
	const file = `version: "2.4"
services:
  web:
    image: busybox:local
    command: sleep 1000
    init: true
    volumes: ["VOLUME"]
volumes: {DECLARED}
`
	compose := func(who lab.Person, project, volume string, args ...string) (string, error) {
		t.Helper()
		dir := filepath.Join(theProxy.Home(who), "one-project")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		declared := ""
		if strings.HasPrefix(volume, "data:") {
			declared = "data: {}"
		}
		text := strings.NewReplacer("VOLUME", volume, "DECLARED", declared).Replace(file)
		if err := os.WriteFile(filepath.Join(dir, "docker-compose.yml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := theProxy.Command(limit(t), who, "docker-compose", append([]string{"-p", project}, args...)...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(who lab.Person, project string, args ...string) {
		t.Helper()
		if out, err := compose(who, project, "data:/data", args...); err != nil {
			t.Errorf("%s: docker-compose %v: %v: %s", who.Name, args, err, out)
		}
	}
	must(lab.Bob, "one", "up", "-d")
	defer must(lab.Bob, "one", "down", "-v")
	for volume, want := range map[string]string{
		"data:/data": "this volume belongs to bob", "/data": "in use by a container that is not yours",
	} {
		out, err := compose(lab.Alice, "one", volume, "up", "-d")
		if err == nil || !strings.Contains(out, want) || !strings.Contains(out, "another project name: -p NAME, or COMPOSE_PROJECT_NAME") {
			t.Errorf("alice is told: %v: %s, want %q", err, out, want)
		}
	}
	// Her network of that name is hers, and goes.
	if out, err := compose(lab.Alice, "one", "/data", "down"); err != nil {
		t.Errorf("down: %v: %s", err, out)
	}
	must(lab.Alice, "two", "up", "-d")
	must(lab.Alice, "two", "down", "-v")
}

// TestNetworkNameRace has two users make, use and remove networks of one name, over
// and over: whatever a user's container joins, and whatever they remove, is theirs.
func TestNetworkNameRace(t *testing.T) {
	people := []lab.Person{lab.Alice, lab.Bob}
	tidy(t, "nrace-alice", "nrace-bob", "nrace")
	// Bob's other network must outlive it all.
	kept := as(t, lab.Bob, "network", "create", "nrace-kept")
	tidy(t, "nrace-kept")
	type inspected struct {
		ID     string
		Labels map[string]string
	}
	var wg sync.WaitGroup
	var joined, wrong [2]atomic.Int64
	for i, who := range people {
		sock := theProxy.Socket(who)
		for range 2 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for began := time.Now(); time.Since(began) < raceTime; {
					ask(t, sock, "POST", "/networks/create", `{"Name":"nrace"}`)
					ask(t, sock, "DELETE", "/networks/nrace", "")
				}
			}()
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			for began := time.Now(); time.Since(began) < raceTime; {
				var seen inspected
				if got := ask(t, sock, "GET", "/networks/nrace", ""); got.status == http.StatusOK {
					if json.Unmarshal([]byte(got.body), &seen) != nil || seen.Labels["ds01.user"] != who.Name {
						wrong[i].Add(1)
					}
				}
				got := ask(t, sock, "POST", "/containers/create?name=nrace-"+who.Name, `{"Image":"busybox:local","HostConfig":{"NetworkMode":"nrace"}}`)
				var made struct{ ID string }
				if got.status != http.StatusCreated || json.Unmarshal([]byte(got.body), &made) != nil {
					continue
				}
				joined[i].Add(1)
				mode, err := theEngine.Docker(limit(t), "inspect", made.ID, "--format", "{{.HostConfig.NetworkMode}}")
				owner, gone := theEngine.Docker(limit(t), "network", "inspect", strings.TrimSpace(mode), "--format", `{{index .Labels "ds01.user"}}`)
				if err != nil || gone == nil && strings.TrimSpace(owner) != who.Name {
					wrong[i].Add(1)
				}
				ask(t, sock, "DELETE", "/containers/"+made.ID+"?force=1", "")
			}
		}()
	}
	wg.Wait()
	for i, who := range people {
		if wrong[i].Load() > 0 {
			t.Errorf("%s reached another's network %d times", who.Name, wrong[i].Load())
		}
		if joined[i].Load() == 0 {
			t.Errorf("the race was not run: %s joined nothing", who.Name)
		}
		ask(t, theProxy.Socket(who), "DELETE", "/networks/nrace", "")
	}
	if got := admin(t, "network", "inspect", "nrace-kept", "--format", "{{.Id}}"); got != kept {
		t.Errorf("bob's other network is %s, was %s", got, kept)
	}
}
