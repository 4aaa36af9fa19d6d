package policy

import (
	"strings"
	"testing"
)

func TestCommitChanges(t *testing.T) {
	for _, r := range []struct {
		changes []string
		rule    string
		allowed bool
	}{
		{nil, "commit-labels", true},
		{[]string{""}, "commit-labels", true},
		{[]string{"ENV a=b\nCMD [\"x\"]", "EXPOSE 80"}, "commit-labels", true},
		{[]string{"ENV PATH=$PATH:/x", "ENV a=ds01.user"}, "commit-labels", true},
		{[]string{"LABEL fine=1 ds01=2"}, "commit-labels", true},
		{[]string{"ONBUILD RUN echo ds01."}, "commit-labels", true},
		{[]string{"LABEL ds01.user=bob"}, "commit-labels", false},
		{[]string{"label x=y DS01.user=bob"}, "commit-labels", false},
		{[]string{"LABEL\tds01.user=bob"}, "commit-labels", false},
		{[]string{"LABEL\v\fds01.user=bob"}, "commit-labels", false},
		{[]string{"\fLABEL ds01.user=bob"}, "commit-labels", false},
		{[]string{`LABEL "ds01".user=bob`}, "commit-labels", false},
		{[]string{`LABEL 'ds''01.user'=bob`}, "commit-labels", false},
		{[]string{`LABEL ds\01.user=bob`}, "commit-labels", false},
		{[]string{"LABEL $x.user=bob"}, "commit-labels", false},
		{[]string{"ONBUILD\tLABEL ds01.user=bob"}, "commit-labels", false},
		{[]string{"ENV a=b", "LABEL ds01.user=bob"}, "commit-labels", false},
		{[]string{"LA\\\nBEL ds01.user=bob"}, "commit-changes", false},
		{[]string{"LA\\  ", "BEL ds01.user=bob"}, "commit-changes", false},
		{[]string{"LABEL a=b \\", "ds01.user=bob"}, "commit-changes", false},
		{[]string{"# escape=`", "LA`\nBEL ds01.user=bob"}, "commit-changes", false},
		{[]string{"\ufeffLABEL ds01.user=bob"}, "commit-changes", false},
		{[]string{"LABEL\u00a0ds01.user=bob"}, "commit-changes", false},
		{[]string{"CMD x \\"}, "commit-changes", false},
	} {
		v := CommitChanges(r.changes)
		if v.Allowed() != r.allowed || v.Rule != r.rule {
			t.Errorf("%q: %+v, want %s %t", r.changes, v, r.rule, r.allowed)
		}
		if !r.allowed && !strings.HasPrefix(v.Message(), "Permission denied: ") {
			t.Errorf("%q: %s", r.changes, v.Message())
		}
	}
}
