# Every target is one command of the build tool, which also runs where there is no make: `python -m course --help`.
PYTHON ?= python3
COURSE = $(PYTHON) -m course

.PHONY: book test lab execute check compare floor data curriculum lock clean help

help:            ## list the commands
	@$(COURSE) --help

book:            ## build the site into _build/html
	@$(COURSE) book

test:            ## run every test
	@$(COURSE) test

lab:             ## open JupyterLab on the lessons and exercises
	@$(COURSE) lab

execute:         ## make notebooks, exercises and solutions, re-executing what changed
	@$(COURSE) execute

check:           ## derived files, exercises, budgets, curriculum
	@$(COURSE) check

compare:         ## re-execute and compare every output
	@$(COURSE) compare

floor:           ## compare with the oldest libraries that requirements.in admits
	@$(COURSE) floor

data:            ## fetch MNIST and Fashion-MNIST
	@$(COURSE) data

curriculum:      ## what is covered where
	@$(COURSE) curriculum

lock:            ## renew requirements.txt
	@$(COURSE) lock

clean:           ## remove what the commands made
	@$(COURSE) clean
