package policy

import (
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
)

func oneselfRequest(user string, change func(*container.CreateRequest)) *container.CreateRequest {
	req := &container.CreateRequest{Config: &container.Config{User: user}, HostConfig: &container.HostConfig{}}
	if change != nil {
		change(req)
	}
	return req
}

func TestContainerRoot(t *testing.T) {
	alice := Account{UID: 1001, Groups: []uint32{100, 7}}
	p := &Profile{Name: "p"}
	for _, c := range []struct {
		name   string
		user   string
		change func(*container.CreateRequest)
		ok     bool
	}{
		{"herself", "1001:100", nil, true},
		{"another group of hers", "1001:7", nil, true},
		{"a group of hers beside", "1001:100", func(r *container.CreateRequest) { r.HostConfig.GroupAdd = []string{"7"} }, true},
		{"no-new-privileges said twice", "1001:100", func(r *container.CreateRequest) { r.HostConfig.SecurityOpt = []string{"no-new-privileges:true"} }, true},
		{"nobody said", "", nil, false},
		{"root", "0:0", nil, false},
		{"no group", "1001", nil, false},
		{"root's group", "1001:0", nil, false},
		{"another uid", "1002:100", nil, false},
		{"a name", "alice:100", nil, false},
		{"zeros before", "01001:100", nil, false},
		{"more after", "1001:100:", nil, false},
		{"a group by name", "1001:100", func(r *container.CreateRequest) { r.HostConfig.GroupAdd = []string{"root"} }, false},
		{"a group of others", "1001:100", func(r *container.CreateRequest) { r.HostConfig.GroupAdd = []string{"8"} }, false},
		{"a capability", "1001:100", func(r *container.CreateRequest) { r.HostConfig.CapAdd = []string{"CHOWN"} }, false},
		{"new privileges", "1001:100", func(r *container.CreateRequest) { r.HostConfig.SecurityOpt = []string{"no-new-privileges:false"} }, false},
		{"privileged", "1001:100", func(r *container.CreateRequest) { r.HostConfig.Privileged = true }, false},
	} {
		req := oneselfRequest(c.user, c.change)
		v, harden := ContainerRoot(p, alice, req, SwitchDeny)
		if v.Allowed() != c.ok || harden != c.ok || !c.ok && !strings.Contains(v.Reason, "rule container-root") {
			t.Errorf("%s: %v, hardened %t", c.name, v, harden)
		}
		want := FailOpen
		if c.ok {
			want = Allow
		}
		if v, harden := ContainerRoot(p, alice, req, SwitchAllow); v.Outcome != want || harden {
			t.Errorf("%s, where that is allowed: %v, hardened %t", c.name, v, harden)
		}
	}
	if v, _ := ContainerRoot(&Profile{OwnershipOnly: true}, alice, oneselfRequest("", nil), SwitchDeny); v.Outcome != Allow {
		t.Errorf("the open profile: %v", v)
	}
	if v := RootSteps(p, SwitchDeny); v.Allowed() {
		t.Error("a build's steps may be root")
	}
	if v := RootSteps(p, SwitchAllow); v.Outcome != FailOpen {
		t.Error(v)
	}
}

func TestHardenOneself(t *testing.T) {
	req := oneselfRequest("1001:100", func(r *container.CreateRequest) {
		r.HostConfig.CapDrop, r.HostConfig.SecurityOpt = []string{"MKNOD"}, []string{"seccomp=builtin", "no-new-privileges"}
	})
	HardenOneself(req)
	hc := req.HostConfig
	if len(hc.CapAdd) != 0 || len(hc.CapDrop) != 1 || hc.CapDrop[0] != "ALL" || strings.Join(hc.SecurityOpt, " ") != "seccomp=builtin no-new-privileges" {
		t.Errorf("%v %v %v", hc.CapAdd, hc.CapDrop, hc.SecurityOpt)
	}
}

func TestUnmappedBind(t *testing.T) {
	alice := Account{UID: 1001, Groups: []uint32{100}}
	may := &Profile{Name: "p", BindsUnmapped: true}
	bind := HostBind{Field: "-v /nfs:/d", Target: "/d"}
	for _, c := range []struct {
		name, dir string
		p         *Profile
		user      string
		change    func(*container.CreateRequest)
		ok        bool
	}{
		{"herself", "", may, "1001:100", nil, true},
		{"starting in it", "/d", may, "1001:100", nil, true},
		{"starting beside it", "/data", may, "1001:100", nil, true},
		{"starting below it", "/d/x", may, "1001:100", nil, false},
		{"starting below it by the request", "/d", may, "1001:100", func(r *container.CreateRequest) { r.WorkingDir = "/d/./x" }, false},
		{"a mount below it", "", may, "1001:100", func(r *container.CreateRequest) { r.HostConfig.Mounts = []mount.Mount{{Target: "d/x"}} }, false},
		{"a device below it", "", may, "1001:100", func(r *container.CreateRequest) {
			r.HostConfig.Devices = []container.DeviceMapping{{PathInContainer: "/d/fuse"}}
		}, false},
		{"a bind below it", "", may, "1001:100", func(r *container.CreateRequest) { r.HostConfig.Binds = []string{"/nfs:/d", "v:/d/x:ro"} }, false},
		{"root", "", may, "", nil, false},
		{"a profile without", "", &Profile{Name: "p"}, "1001:100", nil, false},
	} {
		if v := UnmappedBind(c.p, alice, oneselfRequest(c.user, c.change), c.dir, bind); v.Allowed() != c.ok {
			t.Errorf("%s: %v", c.name, v)
		}
	}
}

func TestExecAs(t *testing.T) {
	alice := Account{UID: 1001, Groups: []uint32{100}}
	free, strict := &Profile{BindsAsRoot: true}, &Profile{}
	for _, c := range []struct {
		name           string
		p              *Profile
		user           string
		oneself, binds bool
		ok             bool
	}{
		{"root", free, "0", false, true, true},
		{"whoever it runs as", strict, "", true, true, true},
		{"herself", strict, "1001:100", true, true, true},
		{"root of herself", free, "0", true, false, false},
		{"a number with a sign", free, "+0", false, false, false},
		{"her uid, with the image's groups", free, "1001", true, false, false},
		{"root beside binds", strict, "0", false, true, false},
		{"root by zeros", strict, "000:5", false, true, false},
		{"a name beside binds", strict, "app", false, true, false},
		{"a number beside binds", strict, "5", false, true, true},
		{"root without binds", strict, "0", false, false, true},
		{"the open profile", &Profile{OwnershipOnly: true}, "0", true, true, true},
	} {
		if v := ExecAs(c.p, alice, &container.ExecOptions{User: c.user}, c.oneself, c.binds); v.Allowed() != c.ok {
			t.Errorf("%s: %v", c.name, v)
		}
	}
}
