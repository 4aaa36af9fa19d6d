package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestChangedLimitsReachUsers runs the daemon without an Engine: a group that changes in
// the limits file is the user's a moment later, and a broken file changes nothing.
func TestChangedLimitsReachUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, who gives sockets to users")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "limits.yaml")
	// As editors do: a new file takes the place of the old one.
	replace := func(text string) {
		t.Helper()
		if err := os.WriteFile(file+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	replace("groups: {phd: {members: [ann], memory: 8g}, lab: {}}")
	c := parse(t, "engine: unix://"+dir+"/engine.sock\nrun_dir: "+dir+"/run\nstate_dir: "+dir+"/state\naudit_log: stderr\nlimits_file: "+file+"\nusers: {refresh: 1h}\n")
	ann, err := parseUser("ann:64001")
	if err != nil {
		t.Fatal(err)
	}
	c.only = append(c.only, ann)
	d, err := newDaemon(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	becomes := func(group string, gib int64) {
		t.Helper()
		var got string
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if len(d.directory.Listed()) == 0 {
				continue
			}
			if s, err := d.directory.ByUID(64001); err == nil {
				if got = s.Group; got == group && *d.limits.Of("ann", group).PerContainer.Memory == gib<<30 {
					return
				}
			}
		}
		t.Fatalf("ann is in %q, want %q with %d GiB", got, group, gib)
	}
	becomes("phd", 8)
	replace("groups: {phd: {memory: 8g}, lab: {members: [ann], memory: 4g}}")
	becomes("lab", 4)
	replace("groups: {phd: {memory: 8g, members: [ann]}, lab: {memory: -1}}")
	time.Sleep(time.Second)
	becomes("lab", 4)
	replace("groups: {phd: {memory: 16g, members: [ann]}}")
	becomes("phd", 16)
}

func TestServeRefusesBrokenLimits(t *testing.T) {
	dir := write(t, map[string]string{"limits.yaml": "defaults: {memory: -1}\n"})
	c := parse(t, "run_dir: "+dir+"/run\nstate_dir: "+dir+"/state\nlimits_file: "+dir+"/limits.yaml\n")
	want := dir + `/limits.yaml: line 1: defaults.memory: "-1" is not a size such as 512m or 32g; null is unlimited`
	if d, err := newDaemon(c); d != nil || err == nil || err.Error() != want {
		t.Errorf("%v, %v; want %s", d, err, want)
	}
	if _, err := os.Lstat(dir + "/state"); !os.IsNotExist(err) {
		t.Errorf("something was made: %v", err)
	}
}
