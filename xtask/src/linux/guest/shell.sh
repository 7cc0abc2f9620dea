# A shell for a person, among livepatch modules.
stty sane rows 50 columns 200
export PS1='klp:\w# '
ls
setsid -c bash --norc -i
: > /tmp/leave
